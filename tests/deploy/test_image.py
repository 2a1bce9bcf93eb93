"""deploy/Dockerfile: linted, and its steps run in a fresh environment on this machine."""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path

import pytest

from tests.chart.tools import tool

ROOT = Path(__file__).parents[2]
DOCKERFILE = ROOT / "deploy" / "Dockerfile"


def test_bases_are_pinned_and_nothing_runs_as_root() -> None:
    """Every stage that is shipped ends as another user, with a health check."""
    text = DOCKERFILE.read_text()
    assert re.search(r"^ARG PYTHON=\S+@sha256:[0-9a-f]{64}$", text, re.MULTILINE)
    assert {"${PYTHON}"} == set(re.findall(r"^FROM (\S+)", text, re.MULTILINE))
    stages = dict(re.findall(r"^FROM \S+ AS (\S+)\n(.*?)(?=^FROM|\Z)", text, re.MULTILINE | re.DOTALL))
    for name in ("router", "worker"):
        assert "USER 10001:10001" in stages[name]
        assert "HEALTHCHECK" in stages[name]


def test_an_image_asks_for_no_gpu_by_itself() -> None:
    """Where NVIDIA's runtime is the usual one, NVIDIA_VISIBLE_DEVICES=all would give every GPU of a node to a pod that
    was given none, such as Ray's head. Who is given one is told by the device plugin, or by `docker run --gpus`."""
    assert "NVIDIA_VISIBLE_DEVICES" not in DOCKERFILE.read_text()


def test_what_is_copied_exists() -> None:
    """From the checkout or from a stage before."""
    for source in re.findall(r"^COPY (?!--from)(.+) \S+$", DOCKERFILE.read_text(), re.MULTILINE):
        assert [] == [word for word in source.split() if not (ROOT / word).exists()]


def test_a_builder_gets_what_is_copied_and_nothing_else() -> None:
    """A checkout has environments and checkpoints of gigabytes, and whatever else lies about."""
    ignored = (DOCKERFILE.parent / "Dockerfile.dockerignore").read_text().split("\n")
    copied = re.findall(r"^COPY (?!--from)(.+) \S+$", DOCKERFILE.read_text(), re.MULTILINE)
    assert "*" in ignored
    assert {word.rstrip("/") for line in copied for word in line.split()} == {
        line.removeprefix("!") for line in ignored if line.startswith("!")
    }


def test_checkov_finds_nothing_unexplained() -> None:
    """Its policies for Dockerfiles."""
    command = [str(tool("checkov")), "-f", str(DOCKERFILE), "--framework", "dockerfile", "--skip-download"]
    command += ["-o", "json", "--compact", "--quiet"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=240)
    found = {check["check_id"] for check in json.loads(done.stdout)["results"]["failed_checks"]}
    assert {"CKV_DOCKER_7"} == found  # it wants a tag that is not "latest", and does not look into the ARG that has one


@pytest.mark.skipif(os.environ.get("SHOAL_TOOLS") != "required", reason="downloads a router's packages: `make chart`")
def test_the_router_s_steps_work_in_a_fresh_environment(tmp_path: Path) -> None:
    """The wheel is built, the hashed lock installed, shoal runs, and the bill of materials lists it all."""
    environment = {**os.environ, "BUILD_VENV": str(tmp_path / "build"), "PYTHONPATH": ""}
    venv, wheels = tmp_path / "shoal", tmp_path / "wheels"
    steps = (
        ["deploy/image/build.sh", "prepare"],
        ["deploy/image/build.sh", "wheel", str(wheels)],
        ["deploy/image/install.sh", "router", str(venv)],
        ["deploy/image/install.sh", "shoal", str(venv), str(wheels)],
    )
    for step in steps:
        done = subprocess.run(step, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=400)
        assert 0 == done.returncode, f"{step}: {done.stdout[-500:]}{done.stderr[-2000:]}"
    shoal = str(venv / "bin/shoal")
    shown = subprocess.run([shoal, "router", "--help"], env=environment, capture_output=True, check=False)
    assert 0 == shown.returncode, shown.stderr
    down = [shoal, "health", "router", "--live", "--address", "127.0.0.1:9"]
    assert 5 == subprocess.run(down, env=environment, capture_output=True, check=False).returncode
    parts = {part["name"].lower() for part in json.loads((venv / "sbom.json").read_text())["components"]}
    assert {"shoal", "grpcio", "redis"} <= parts
    assert not {"torch", "ray"} & parts
