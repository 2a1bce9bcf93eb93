"""`shoal drain`, on a real Redis and a real gRPC server in the place of a worker."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest
import redis

from shoal.cluster.commands import drain
from shoal.cluster.embedded_redis import EmbeddedRedis
from shoal.cluster.errors import ConfigError, UnhealthyError
from shoal.proto.v1 import worker_pb2 as pb
from shoal.proto.v1 import worker_pb2_grpc
from shoal.router.store.blocking import Blocking
from shoal.wire.registry import GROUPS_KEY, GroupEntry, WorkerEntry, decode, encode, group_key
from tests.cluster.commands.status_only import StatusOnly


@pytest.fixture
def worker() -> Iterator[tuple[StatusOnly, str]]:
    """A worker and its address."""
    service, server = StatusOnly(pb.GetStatusResponse(running=2, ready=True)), grpc.server(ThreadPoolExecutor(1))
    worker_pb2_grpc.add_WorkerServiceServicer_to_server(service, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield service, f"127.0.0.1:{port}"
    server.stop(0).wait()


@pytest.fixture
def client(redis_server: EmbeddedRedis) -> Iterator[redis.Redis]:
    """An empty Redis."""
    client = redis.Redis.from_url(redis_server.url)
    client.flushdb()
    yield client
    client.flushdb()
    client.close()


def announce(client: redis.Redis, *addresses: str) -> None:
    """A group of these workers."""
    workers = tuple(WorkerEntry(f"w{rank}", rank, address) for rank, address in enumerate(addresses))
    client.set(group_key("g0"), encode(GroupEntry("g0", 3, True, workers)))
    client.sadd(GROUPS_KEY, "g0")


def draining(client: redis.Redis) -> list[bool]:
    """What the registry says of each worker."""
    raw = client.get(group_key("g0"))
    assert isinstance(raw, bytes)
    return [worker.draining for worker in decode(raw).workers]


def test_it_waits_until_the_workers_here_are_empty(
    redis_server: EmbeddedRedis, client: redis.Redis, worker: tuple[StatusOnly, str]
) -> None:
    """They are marked as leaving, others are not, and it ends when nothing runs on them any more."""
    service, address = worker
    announce(client, address, "10.9.9.9:20000")
    drain.run(redis_server.url, "127.0.0.1", timeout=20.0)
    assert [True, False] == draining(client)
    assert 0 == service.status.running


def test_requests_that_stay_are_told(
    redis_server: EmbeddedRedis, client: redis.Redis, worker: tuple[StatusOnly, str]
) -> None:
    """After the time is up, with the address."""
    service, address = worker
    service.status.running = 10**6
    announce(client, address)
    with pytest.raises(UnhealthyError, match=address):
        drain.run(redis_server.url, "127.0.0.1", timeout=0.6)


def test_a_machine_without_workers_is_empty(redis_server: EmbeddedRedis, client: redis.Redis) -> None:
    """A pod whose workers left already must not wait."""
    announce(client, "10.9.9.9:20000")
    drain.run(redis_server.url, "127.0.0.1", timeout=5.0)
    assert [False] == draining(client)


def test_a_registry_that_never_answers_is_not_waited_for_to_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where everything is taken down at once Redis is gone first, and a pod would stay for its whole grace period."""
    monkeypatch.setattr(drain, "_AWAY", 0.3)
    with pytest.raises(UnhealthyError, match="the registry is away"):
        drain.run("redis://127.0.0.1:9/0", "127.0.0.1", timeout=30.0)


def test_who_was_marked_is_waited_for_without_the_registry(
    redis_server: EmbeddedRedis,
    client: redis.Redis,
    worker: tuple[StatusOnly, str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It goes away in the middle; the workers themselves say when they are empty."""
    service, address = worker
    service.status.running = 4
    announce(client, address)
    marked = drain.mark

    def once(client: Blocking, host: str) -> list[str]:
        if looks:
            raise redis.ConnectionError("gone")
        looks.append(1)
        return marked(client, host)

    looks: list[int] = []
    monkeypatch.setattr(drain, "mark", once)
    monkeypatch.setattr(drain, "_AWAY", 0.0)
    drain.run(redis_server.url, "127.0.0.1", timeout=20.0)
    assert 0 == service.status.running


def test_it_needs_the_registry() -> None:
    """And says which setting is missing."""
    with pytest.raises(ConfigError, match=r"cluster\.redis_url"):
        drain.run("", "127.0.0.1", timeout=1.0)
