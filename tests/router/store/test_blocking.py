"""Clients that wait for their answer, for every kind of URL, on real servers."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest

from shoal.router.store.blocking import RedisUrlError, connect_blocking, one_server
from tests.router.store.servers import cluster, holds_soon, watched


def test_one_server(redis_url: str) -> None:
    """The plain form."""
    with contextlib.closing(connect_blocking(redis_url)) as client:
        client.set("a", "1")
        assert b"1" == client.get("a")
        assert one_server(client) is client


def test_a_cluster_answers_with_the_same_commands(tmp_path: Path) -> None:
    """Wherever a key lies; what only a server can be asked is asked of one."""
    with contextlib.ExitStack() as stack:
        servers = stack.enter_context(cluster(tmp_path))
        client = connect_blocking(f"redis+cluster://127.0.0.1:{servers[0].port}")
        stack.enter_context(contextlib.closing(client))
        for key in "abc":
            client.set(key, key)
        assert [b"a", b"b", b"c"] == [client.get(key) for key in "abc"]
        assert "redis_version" in one_server(client).info()
        with client.pipeline(transaction=True) as pipe:
            pipe.watch("a")  # type: ignore[no-untyped-call]  # redis publishes no type for it
            pipe.multi()
            pipe.set("a", "changed")
            pipe.execute()
        assert b"changed" == client.get("a")


def test_the_primary_of_a_service_is_found_again_after_a_failover(tmp_path: Path) -> None:
    """Through its sentinels, each time."""
    with watched(tmp_path, "p@ss:word") as service:
        url = f"redis+sentinel://:p%40ss%3Aword@127.0.0.1:{service.sentinel.port}/main"
        with contextlib.closing(connect_blocking(url)) as client:
            client.set("a", "1")
        service.primary.ask("WAIT", 1, 2000)
        service.primary.kill()

        def again() -> bool:
            with contextlib.closing(connect_blocking(url)) as client:
                return client.get("a") == b"1" and bool(client.set("b", "2"))

        holds_soon(again)


def test_a_url_that_cannot_be_used_is_told() -> None:
    """Without showing it."""
    with pytest.raises(RedisUrlError) as caught:
        connect_blocking("http://user:hunter2@x")
    assert "hunter2" not in str(caught.value)
