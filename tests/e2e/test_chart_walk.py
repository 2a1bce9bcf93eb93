"""The chart's rendered commands, walked through as separate processes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.chart.expressions import exported, wanted
from tests.e2e.walk import PATIENCE

ROOT = Path(__file__).parents[2]
NETWORK = ["unshare", "--net"] if os.geteuid() == 0 else ["unshare", "--map-root-user", "--net"]


pytestmark = pytest.mark.skipif(
    os.environ.get("SHOAL_TOOLS") != "required", reason="a minute of starting processes: `make chart`"
)


@pytest.fixture(scope="module")
def seen(tiny_model: Path) -> Iterator[dict[str, Any]]:
    """What the walk saw, in a network of its own: the chart's ports may be taken on this machine."""
    if shutil.which("unshare") is None or subprocess.run([*NETWORK, "true"], check=False).returncode:
        pytest.skip("no network namespace can be made here: the walk needs the chart's own ports")
    root = Path(tempfile.mkdtemp(prefix="walk"))  # short: names of sockets are at most 107 characters long
    command = [*NETWORK, sys.executable, "-m", "tests.e2e.walk", str(root), str(tiny_model)]
    program = root / "bin" / "shoal"  # as the installed one, whether or not this checkout is installed
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m shoal.cluster.cli "$@"\n')
    program.chmod(0o755)
    roots = ":".join(str(ROOT / name) for name in ("cluster", "kernels", "proto", "router", "workers", "."))
    path = f"{program.parent}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "PYTHONPATH": roots}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=4 * PATIENCE, check=False)
    logs = "\n".join(f"== {path.name}\n{path.read_text(errors='replace')[-1500:]}" for path in root.glob("*.log"))
    assert 0 == done.returncode, f"{done.stdout}\n{done.stderr[-3000:]}\n{logs}"
    yield json.loads(done.stdout.splitlines()[-1])
    shutil.rmtree(root)


def test_helm_test_passes_against_the_rendered_entry_points(seen: dict[str, Any]) -> None:
    """Redis, head with its start hook, worker and router as rendered: one real chat over gRPC."""
    assert 0 == seen["helm_test"]


def test_every_metric_that_is_asked_for_is_in_the_scrape_of_the_cluster(seen: dict[str, Any]) -> None:
    """By dashboards, alerts and autoscalers."""
    there = exported(seen["scrape"])
    assert {} == {name: sorted(where) for name, where in wanted().items() if name not in there}
    assert "shoal_router_output_tokens_total 0.0" not in seen["scrape"]


def test_the_controller_follows_the_desired_size(seen: dict[str, Any]) -> None:
    """What `helm upgrade` writes scales the running cluster, and it answers on."""
    assert 0 == seen["chat_after_scaling"]


def test_the_hooks_of_the_end_work(seen: dict[str, Any]) -> None:
    """preStop drains the idle ranks at once; SIGTERM ends the router well."""
    assert (0, 0) == (seen["drain"], seen["router_exit"])
