"""`shoal health`: what probes are told."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health as grpc_health
from grpc_health.v1 import health_pb2, health_pb2_grpc

from shoal.cluster import admin_client
from shoal.cluster.client import INFERENCE
from shoal.cluster.commands import doctor, drain, health, status
from shoal.cluster.errors import CallError, UnhealthyError
from shoal.proto.v1 import worker_pb2 as pb
from shoal.proto.v1 import worker_pb2_grpc
from tests.cluster.commands.status_only import StatusOnly
from tests.cluster.test_cli import shoal


def test_a_router_lives_before_it_can_generate() -> None:
    """Liveness asks for an answer, readiness for work."""
    server, servicer = grpc.server(ThreadPoolExecutor(1)), grpc_health.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    servicer.set("", health_pb2.HealthCheckResponse.SERVING)
    servicer.set(INFERENCE, health_pb2.HealthCheckResponse.NOT_SERVING)
    address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    health.router(address, live=True)
    with pytest.raises(UnhealthyError, match="NOT_SERVING"):
        health.router(address, live=False)
    server.stop(0).wait()
    with pytest.raises(UnhealthyError, match="UNREACHABLE"):
        health.router(address, live=True)


def test_a_pod_is_ready_when_all_of_its_ranks_are() -> None:
    """One that is not, or does not answer, is named."""
    server, worker = grpc.server(ThreadPoolExecutor(1)), StatusOnly(pb.GetStatusResponse())
    worker_pb2_grpc.add_WorkerServiceServicer_to_server(worker, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    with pytest.raises(UnhealthyError, match=f"{port} is not ready"):
        health.workers("127.0.0.1", port, 1)
    worker.status.ready = True
    health.workers("127.0.0.1", port, 1)
    server.stop(0).wait()
    with pytest.raises(UnhealthyError, match=f"{port} does not answer"):
        health.workers("127.0.0.1", port, 1)


def test_where_the_workers_listen_must_be_known(tmp_path: Path) -> None:
    """Any free port is nothing that a probe can ask."""
    done = shoal(tmp_path, "health", "worker")
    assert 2 == done.returncode
    assert "worker.first_port" in done.stderr


@pytest.mark.parametrize(
    "url", ["redis://127.0.0.1:1", "redis+cluster://127.0.0.1:1", "redis+sentinel://127.0.0.1:1/m"]
)
def test_a_redis_of_any_kind_that_is_away_is_told(url: str) -> None:
    """By everything that asks one: a probe, the doctor, a drain, the status, the keys, who looks for the controller."""
    with pytest.raises(UnhealthyError, match="does not answer"):
        health.redis(url)
    assert doctor.WRONG == doctor.redis(url).state
    assert isinstance(doctor.clock(url), doctor.Finding)
    with pytest.raises(UnhealthyError, match="the registry is away"):
        drain.run(url, "127.0.0.1", timeout=0.1)
    assert status.read_registry(url)[0]
    assert status.read_autoscale(url) is None
    with pytest.raises(CallError, match="does not answer"):
        admin_client._address(url)
