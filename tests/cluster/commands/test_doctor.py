"""`shoal doctor`: each check on what is well and on what is not."""

from __future__ import annotations

import socket
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from io import StringIO
from pathlib import Path

import grpc
import pytest
from grpc_health.v1.health import HealthServicer
from grpc_health.v1.health_pb2_grpc import add_HealthServicer_to_server
from rich.console import Console

from shoal.cluster.checkpoint.make import make_checkpoint
from shoal.cluster.commands import doctor
from shoal.cluster.commands.doctor import DOUBTFUL, WELL, WRONG
from shoal.cluster.config import load
from shoal.cluster.embedded_redis import EmbeddedRedis
from shoal.cluster.errors import UnhealthyError
from tests.router.store.servers import cluster


def program(folder: Path, name: str, script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put a program first on PATH."""
    path = folder / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    monkeypatch.setenv("PATH", str(folder), prepend=":")


@pytest.mark.parametrize(
    ("script", "state", "words"),
    [
        ('echo "NVIDIA H200, 570.1, 143771 MiB, 9.0"', WELL, "H200"),
        ('echo "Tesla V100, 470.2, 16160 MiB, 7.0"', DOUBTFUL, "V100"),
        ("echo 'Failed to initialize NVML: Driver/library version mismatch'; exit 18", WRONG, "mismatch"),
    ],
)
def test_the_driver_is_asked_for_its_cards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, state: str, words: str
) -> None:
    """A card that is too old and a driver that does not answer are told apart from a good one."""
    program(tmp_path, "nvidia-smi", script, monkeypatch)
    found = doctor.gpu()
    assert state == found.state
    assert words in found.words


def test_a_gpu_that_is_configured_and_not_there_is_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers would not start; where they run elsewhere, or on the CPU, nothing is missing."""
    monkeypatch.setenv("PATH", str(tmp_path))
    assert (WRONG, WELL, WELL) == (
        doctor.gpu(1, "cuda").state, doctor.gpu(0, "cuda").state, doctor.gpu(1, "auto").state
    )  # fmt: skip


@pytest.mark.parametrize(
    ("script", "state", "words"),
    [
        ("echo 12.8 8", WELL, "CUDA 12.8 sees 8"),
        ("echo None False", WRONG, "built without CUDA"),
        ("echo 'The NVIDIA driver on your system is too old' >&2; echo 12.8 False", WRONG, "too old"),
        ("echo \"ModuleNotFoundError: No module named 'torch'\" >&2; exit 1", DOUBTFUL, "ModuleNotFoundError"),
    ],
)
def test_torch_is_asked_whether_it_sees_the_cards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, state: str, words: str
) -> None:
    """A build without CUDA and a driver that is too old for it are told apart, each with what helps."""
    program(tmp_path, "nvidia-smi", "exit 0", monkeypatch)
    program(tmp_path, "python", script, monkeypatch)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    found = doctor.torch()
    assert (state, True) == (found.state, words in found.words)
    assert (state == WELL) == (found.advice == "")


def test_torch_s_own_answer_is_understood(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The real one here, whichever build it is."""
    program(tmp_path, "nvidia-smi", "exit 0", monkeypatch)
    found = doctor.torch()
    assert found.words.startswith(("built without CUDA", "CUDA "))


def test_redis_is_asked_for_what_sessions_need(redis_server: EmbeddedRedis) -> None:
    """It answers, keeps an append-only file, evicts nothing, and has our time; another one does not answer."""
    assert WELL == doctor.redis(redis_server.url).state
    assert WELL == doctor.redis("").state
    away = doctor.redis("redis://:hunter2@127.0.0.1:1/0")
    assert (WRONG, True) == (away.state, bool(away.advice))
    assert "hunter2" not in away.words


def test_a_redis_that_evicts_is_wrong(redis_server: EmbeddedRedis) -> None:
    """Sessions would vanish one by one."""
    import redis

    client = redis.Redis.from_url(redis_server.url)
    client.config_set("maxmemory-policy", "allkeys-lru")
    try:
        assert (WRONG, "allkeys-lru") == (doctor.redis(redis_server.url).state,
                                          doctor.redis(redis_server.url).words.split()[-1])  # fmt: skip
    finally:
        client.config_set("maxmemory-policy", "noeviction")
        client.close()


def test_every_server_of_a_cluster_is_asked(tmp_path: Path) -> None:
    """One that evicts is found, whichever it is; one that is away is told."""
    with cluster(tmp_path) as servers:
        url = f"redis+cluster://127.0.0.1:{servers[0].port}"
        assert WELL == doctor.redis(url).state
        for server in servers:
            server.ask("CONFIG", "SET", "maxmemory", "100mb", "maxmemory-policy", "allkeys-lru")
            assert "evicts by allkeys-lru" == doctor.redis(url).words
            server.ask("CONFIG", "SET", "maxmemory-policy", "noeviction")
        servers[2].kill()
        assert (WRONG, "does not answer") == (doctor.redis(url).state, doctor.redis(url).words.partition(":")[0])


def test_a_url_that_is_none_is_wrong() -> None:
    """And its password stays hidden."""
    found = doctor.redis("http://user:hunter2@x")
    assert WRONG == found.state
    assert "hunter2" not in found.words + found.advice


def test_every_worker_wants_a_card(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that goes without is told before it waits for a place."""
    program(tmp_path, "nvidia-smi", 'echo "NVIDIA H200, 570.1, 143771 MiB, 9.0"', monkeypatch)
    assert WELL == doctor.gpu(1).state
    short = doctor.gpu(2)
    assert (DOUBTFUL, True) == (short.state, "1 for 2 workers" in short.words)


def test_the_clock_is_compared_with_redis(redis_server: EmbeddedRedis, monkeypatch: pytest.MonkeyPatch) -> None:
    """Far off is wrong; without a Redis the kernel says whether anything keeps it."""
    assert WELL == doctor.clock(redis_server.url).state
    now = time.time
    monkeypatch.setattr(time, "time", lambda: now() + 7)
    off = doctor.clock(redis_server.url)
    assert (WRONG, True) == (off.state, off.words.startswith("7."))
    for kept, state in ((True, WELL), (False, DOUBTFUL)):
        monkeypatch.setattr(doctor, "_kept", lambda kept=kept: kept)
        assert state == doctor.clock("").state


def test_a_named_ray_is_asked_whether_it_answers() -> None:
    """Its control service speaks gRPC's health check; nothing listens on the other address."""
    server = grpc.server(ThreadPoolExecutor(1))
    service = HealthServicer()
    add_HealthServicer_to_server(service, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        assert WELL == doctor.ray(f"127.0.0.1:{port}").state
    finally:
        server.stop(0).wait()
    away = doctor.ray("127.0.0.1:1")
    assert (WRONG, True) == (away.state, "ray_address" in away.advice)
    assert WELL == doctor.ray("").state


def test_ports_of_workers_are_looked_at_too() -> None:
    """As many as there are ranks, from the first on."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assignments = ["router.port=0", "router.metrics_port=-1", "router.http_port=-1", "cluster.ep_size=2"]
        found = doctor.ports(load(environment={}, assignments=[*assignments, f"worker.first_port={port - 1}"]))
    assert DOUBTFUL == found.state
    assert f"worker.first_port {port}" in found.words


def test_ports_that_are_taken_are_named() -> None:
    """By their settings."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        settings = load(environment={}, assignments=[f"router.port={port}", "router.metrics_port=-1"])
        found = doctor.ports(settings)
    assert DOUBTFUL == found.state
    assert f"router.port {port}" in found.words


def test_a_checkpoint_is_read_and_with_hashes_compared(tmp_path: Path) -> None:
    """A directory that is none, one that was not named and one that is damaged are told apart."""
    model = make_checkpoint(tmp_path / "tiny", "tiny")
    assert WELL == doctor.checkpoint(str(model), hashes=False).state
    assert WELL == doctor.checkpoint(str(model), hashes=True).state
    assert WRONG == doctor.checkpoint(str(tmp_path / "nowhere"), hashes=False).state
    assert DOUBTFUL == doctor.checkpoint("", hashes=False).state
    (model / "config.json").write_text("{}")
    assert WRONG == doctor.checkpoint(str(model), hashes=False).state


def test_what_is_wrong_makes_the_command_fail(tmp_path: Path) -> None:
    """After all of it was told, each with what helps."""
    settings = load(environment={}, assignments=["cluster.redis_url=redis://127.0.0.1:1/0"])
    out = StringIO()
    with pytest.raises(UnhealthyError):
        doctor.run(settings, False, Console(file=out, width=200))
    for check in ("python", "gpu", "torch", "/dev/shm", "compiler", "ray", "redis", "clock", "ports", "checkpoint"):
        assert f" {check}: " in out.getvalue()
    assert "check cluster.redis_url" in out.getvalue()
