"""Groups of 1, 2 and 4 real Ray actors: the same requests give the same tokens, bit for bit."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from shoal.cluster.placement import even_placement
from shoal.workers.actor import WorkerActor
from shoal.workers.config import WorkerConfig
from shoal.workers.experts.group import GroupSpec, Member
from shoal.workers.experts.rendezvous import RendezvousServer
from tests.workers.clients import connected, submit_message
from tests.workers.engines import make_engine, random_tokens, run, sequence

SIZES = (1, 2, 4)
PROMPTS = [random_tokens(n, 1000, seed=n) for n in (5, 33, 48, 70)]


@pytest.fixture(scope="module")
def groups(tiny: Path) -> Iterator[dict[int, list[str]]]:
    """The gRPC addresses of the ranks of each group; all seven actors are made at once."""
    import ray

    quiet = {"RAY_USAGE_STATS_ENABLED": "0", "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
    os.environ.update(quiet)
    ray.init(
        address="local", num_cpus=8, include_dashboard=False, object_store_memory=100 << 20, log_to_driver=False,
        logging_level=logging.ERROR, runtime_env={"env_vars": quiet},
    )  # fmt: skip
    actor_class: Any = ray.remote(WorkerActor)
    actors = {
        size: [
            actor_class.options(num_cpus=1, max_concurrency=4).remote(
                WorkerConfig(model=str(tiny), worker_id=f"w{rank}", group=f"ep{size}", kv_tokens=2048)
            )
            for rank in range(size)
        ]
        for size in SIZES
    }
    facts = {size: ray.get([a.prepare.remote() for a in ranks]) for size, ranks in actors.items()}
    store = RendezvousServer("127.0.0.1")
    for size, ranks in actors.items():
        spec = GroupSpec(
            group=f"ep{size}",
            epoch=1,
            store_host="127.0.0.1",
            store_port=store.port,
            members=tuple(Member(i, f.worker_id, f.address) for i, f in enumerate(facts[size])),
            placement=even_placement(facts[size][0].num_layers, facts[size][0].num_experts, size),
        )
        ray.get([a.reconfigure.remote(spec, True) for a in ranks], timeout=60)
    yield {size: [f.address for f in facts[size]] for size in SIZES}
    ray.get([a.stop.remote() for ranks in actors.values() for a in ranks], timeout=60)
    ray.shutdown()


def generate(addresses: list[str], temperature: float) -> list[list[int]]:
    """All prompts at once, spread over the ranks."""
    results = []
    for i, prompt in enumerate(PROMPTS):
        with connected(addresses[i % len(addresses)]) as client:
            name = f"{temperature}-{i}"
            client.send(submit_message(name, prompt, max_tokens=16, temperature=temperature, seed=99 + i))
            results.append([token for output in client.outputs(name) for token in output.ids])
    return results


def test_greedy_tokens_do_not_depend_on_the_group(groups: dict[int, list[str]], tiny: Path) -> None:
    """1, 2 and 4 actors, and an engine without Ray, agree."""
    engine = make_engine(tiny)
    expected = [run(engine, sequence(p, name=str(i), max_tokens=16))[0] for i, p in enumerate(PROMPTS)]
    assert dict.fromkeys(SIZES, expected) == {size: generate(groups[size], 0.0) for size in SIZES}


def test_seeded_tokens_do_not_depend_on_the_group(groups: dict[int, list[str]]) -> None:
    """Sampling at temperature 1 with a seed agrees too."""
    first, *others = (generate(groups[size], 1.0) for size in SIZES)
    assert [first, first] == others
