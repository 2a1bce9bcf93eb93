"""What a worker tells Prometheus, over a real socket."""

from __future__ import annotations

import urllib.request

from prometheus_client.parser import text_string_to_metric_families

from shoal.proto.v1 import worker_pb2 as pb
from shoal.workers.experts.exchange import Traffic
from shoal.workers.metrics import STATES, MetricsServer, Readings
from shoal.workers.ports import candidates, first_free


def status() -> pb.GetStatusResponse:
    """Rank 1 of a group, in the middle of its work."""
    made = pb.GetStatusResponse(
        identity=pb.Welcome(group="g0", rank=1, epoch=4), ready=True, steps=7, prompt_tokens=10, cached_tokens=5,
        kv_blocks=100, kv_blocks_used=25, sliding_blocks=40, sliding_blocks_used=4,
    )  # fmt: skip
    made.expert_loads.add(layer=2, expert=31, tokens=9)
    made.step_seconds["exchange"] = 1.5
    return made


def test_its_state_is_read_at_every_scrape() -> None:
    """Counters, gauges by kind of layer, loads by layer and expert, time by phase, all with group and rank."""
    server = MetricsServer(Readings(status, lambda: "serving", lambda: Traffic(64, 0.25)), "127.0.0.1", 0)
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{server.port}/metrics", timeout=5) as answer:
            text = answer.read().decode()
    finally:
        server.close()
    samples = {
        (s.name, *(v for k, v in sorted(s.labels.items()) if k not in ("group", "rank"))): s.value
        for family in text_string_to_metric_families(text)
        for s in family.samples
        if (s.labels["group"], s.labels["rank"]) == ("g0", "1")
    }
    assert 7 == samples["shoal_worker_steps_total",]
    assert 4 == samples["shoal_worker_epoch",]
    assert (25, 4) == tuple(samples["shoal_worker_kv_blocks_used", kind] for kind in ("full", "sliding"))
    assert 9 == samples["shoal_worker_expert_tokens_total", "31", "2"]
    assert 1.5 == samples["shoal_worker_step_seconds_total", "exchange"]
    assert (64, 0.25) == (
        samples["shoal_worker_exchange_sent_bytes_total",],
        samples["shoal_worker_exchange_wait_seconds_total",],
    )
    assert ["serving"] == [state for state in STATES if samples["shoal_worker_state", state]]


def test_ranks_of_one_machine_take_the_ports_one_after_the_other() -> None:
    """The first free one from a first one on."""
    taken: list[int] = []

    def listen(port: int) -> int:
        if port in (20000, 20001):
            raise OSError("taken")
        taken.append(port)
        return port

    assert 20002 == first_free(candidates(0, 20000), listen)
    assert [20002] == taken
