"""deploy/Dockerfile's instructions and deploy/compose.yaml's services, carried out without a container engine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from shoal.cluster.checkpoint.make import make_checkpoint

ROOT = Path(__file__).parents[2]
ALONE = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]

pytestmark = [
    pytest.mark.skipif(os.environ.get("SHOAL_TOOLS") != "required", reason="builds both images: `make chart`"),
    pytest.mark.skipif(os.geteuid() != 0, reason="only root may make root file systems"),
]


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What came of it."""
    if subprocess.run([*ALONE, "true"], check=False).returncode:
        pytest.skip("no namespaces can be made here")
    folder = tmp_path_factory.mktemp("up")
    model = make_checkpoint(tmp_path_factory.mktemp("model") / "tiny", "tiny")
    roots = ":".join(str(ROOT / name) for name in ("cluster", "kernels", "proto", "router", "workers", "."))
    command = [*ALONE, sys.executable, "-m", "tests.deploy.up", str(folder), str(model)]
    environment = {**os.environ, "PYTHONPATH": roots}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=1500, check=False)
    assert 0 == done.returncode, f"{done.stdout}\n{done.stderr[-6000:]}"
    print(done.stdout)
    told: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return told


def test_a_chat_is_answered_through_the_composed_services(seen: dict[str, Any]) -> None:
    """Redis, two workers with 8-bit activations, and a router: all healthy, and one real answer."""
    assert (0, True) == (seen["chat"], bool(seen["answer"].strip()))


def test_nothing_can_be_written_to_but_what_is_meant(seen: dict[str, Any]) -> None:
    """The root is read-only, and the user is nobody."""
    assert [] == seen["outside"]


def test_images_hold_what_their_locks_say(seen: dict[str, Any]) -> None:
    """The bill of materials of each: the router's has neither torch nor Ray, both can trace."""
    router, worker = (set(seen["packages"][target]) for target in ("router", "worker"))
    assert {"shoal", "grpcio", "redis", "opentelemetry-sdk"} <= router & worker
    assert {"torch", "ray"} <= worker
    assert not {"torch", "ray"} & router


def test_a_login_shell_finds_ray_too(seen: dict[str, Any]) -> None:
    """KubeRay may start it through one."""
    assert ["/opt/shoal/bin/ray", "/opt/shoal/bin/shoal"] == seen["login_path"].split()


def test_the_worker_s_image_can_be_ray_s_autoscaler(seen: dict[str, Any]) -> None:
    """KubeRay runs it beside the head, from the head's image."""
    assert "" == seen["autoscaler"]


def test_every_service_ends_when_it_is_told_to(seen: dict[str, Any]) -> None:
    """SIGTERM is heard by the first process of each."""
    ends: dict[str, int] = seen["exits"]
    assert ends.pop("workers-cpu") in (0, 1, 143)  # Ray's choice
    assert {"router-cpu": 0, "redis": 0} == ends
