"""`shoal serve` on a Ray and a Redis that others run."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.served import Client, environment, serving

OTHERS_RAY = """
import json, sys
import ray
ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR",
         namespace="theirs", object_store_memory=100_000_000)
print(ray.get_runtime_context().gcs_address, flush=True)
for line in sys.stdin:
    free = ray.available_resources().get("CPU", 0.0)
    print(json.dumps([sorted(a["name"] for a in ray.util.list_named_actors(all_namespaces=True)), free]), flush=True)
"""


class OthersRay:
    """A Ray of somebody else's, and what it says of itself."""

    def __init__(self) -> None:
        command = [sys.executable, "-c", OTHERS_RAY]
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(
            command, stdin=pipe, stdout=pipe, text=True, env=environment(RAY_AUTH_MODE="disabled")
        )
        assert self.process.stdout is not None
        self.address = self.process.stdout.readline().strip()

    def look(self) -> tuple[list[str], float]:
        """Names of its actors, and its free CPUs."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print(file=self.process.stdin, flush=True)
        names, free = json.loads(self.process.stdout.readline())
        return names, free


@pytest.fixture
def others_ray() -> Iterator[OthersRay]:
    """A Ray with room for two workers."""
    ray = OthersRay()
    yield ray
    ray.process.communicate()


def test_a_cluster_on_an_existing_ray_leaves_it_as_it_was(
    others_ray: OthersRay, redis_url: str, tiny_model: Path, tmp_path: Path
) -> None:
    """Workers and controller are its actors while it serves; afterwards Ray and Redis go on, with all their room."""
    with serving(
        tiny_model,
        tmp_path / "state",
        RAY_AUTH_MODE="disabled",
        SHOAL_CLUSTER__RAY_ADDRESS=others_ray.address,
        SHOAL_CLUSTER__REDIS_URL=redis_url,
    ) as served:
        client = Client(served.wait_until_ready())
        assert len(client.ids(seed=1, tokens=4)) == 4
        client.chat("Hello", "theirs")
        assert len(client.session("theirs").items) >= 2
        assert others_ray.look() == (["g0-0", "g0-1", "shoal-controller"], 0.0)
        client.close()
        stopped = served.shoal("stop")
        assert stopped.returncode == 0, stopped.stderr
        assert served.process.wait(10) == 0, served.output()
        assert others_ray.look() == ([], 2.0)
