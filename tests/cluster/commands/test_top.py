"""`shoal top`: what one look becomes, and what two say about speed."""

from __future__ import annotations

import copy
from io import StringIO
from typing import Any

from prometheus_client import start_http_server
from rich.console import Console

from shoal.cluster.commands import top
from shoal.router.metrics import Metrics
from shoal.router.tally import Tally

LOOK: dict[str, Any] = {
    "router": {"address": "127.0.0.1:50051", "inference": "SERVING", "sessions": "SERVING"},
    "registry": "ok",
    "groups": [{"group": "g0", "epoch": 3, "ready": True, "workers": [
        {"rank": 0, "worker_id": "g0-0", "address": "10.0.0.1:20000", "ready": True, "reachable": True, "running": 5,
         "waiting": 2, "kv_used": 0.25, "generated_tokens": 100, "expert_tokens": {"0": 0, "1": 30, "10": 10}},
        {"rank": 1, "worker_id": "g0-1", "address": "10.0.0.2:20000", "ready": False, "reachable": False},
    ]}],
    "tenants": {"fish": {"requests": 7.0, "input": 11.0, "output": 13.0}},
}  # fmt: skip


def shown(looks: list[dict[str, Any]]) -> str:
    """What stands on the terminal at the end."""
    waiting = iter(looks)
    out = StringIO()
    top.run(lambda: next(waiting), 0.01, len(looks), Console(file=out, width=120, force_terminal=False))
    return out.getvalue()


def test_one_look_shows_groups_ranks_experts_and_tenants() -> None:
    """With what is wrong told as such."""
    text = shown([LOOK])
    for words in ("g0  epoch 3  ready", "10.0.0.1:20000", "25%", "unreachable", "1.00 x the mean", "fish", "13"):
        assert words in text
    assert " █░" in text  # three experts in the order of their numbers, by load


def test_two_looks_show_speed() -> None:
    """Tokens between them over the seconds between them."""
    later = copy.deepcopy(LOOK)
    later["groups"][0]["workers"][0]["generated_tokens"] = 107
    assert "700" in shown([LOOK, later])
    assert "700" not in shown([LOOK])


def test_many_experts_share_cells() -> None:
    """A line is never wider than a terminal, and the heaviest of a cell is what is seen."""
    loads = [0] * 128
    loads[77] = 9
    assert 64 == len(top.heat(loads, 9))
    assert 1 == top.heat(loads, 9).count("█")


def test_tenants_are_read_from_a_router_s_metrics() -> None:
    """Over a real socket; a router that does not answer has none."""
    metrics = Metrics()
    metrics.settle(Tally(prompt=4, generated=2), "fish")
    server, thread = start_http_server(0, "127.0.0.1", metrics.registry)
    address = f"127.0.0.1:{server.server_port}"
    assert {"fish": {"input": 4.0, "output": 2.0, "requests": 1.0}} == top.tenants(address)
    server.shutdown()
    server.server_close()
    thread.join(5)
    assert {} == top.tenants(address)
