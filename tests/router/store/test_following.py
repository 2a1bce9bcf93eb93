"""Redis over TLS, with certificates that are renewed: a real server behind a listener that speaks TLS for it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import redis.exceptions
from redis.asyncio.cluster import RedisCluster

from shoal.cluster.embedded_redis import EmbeddedRedis
from shoal.router.store.away import ABSENT
from shoal.router.store.connect import connect
from shoal.router.store.following import FollowingConnection
from shoal.wire.tls import TlsConfig, http_context
from tests.certificates import Authority
from tests.router.store.servers import Server, cluster, holds_soon, watched

Connection = Awaitable[tuple[asyncio.StreamReader, asyncio.StreamWriter]]


@contextlib.asynccontextmanager
async def over_tls(config: TlsConfig, connected: Callable[[], Connection]) -> AsyncIterator[int]:
    """A port that speaks TLS for a server that does not."""

    async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        inner_reader, inner_writer = await connected()

        async def pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
            with contextlib.suppress(OSError):
                while data := await source.read(65536):
                    sink.write(data)
                    await sink.drain()
            sink.close()

        await asyncio.gather(pump(reader, inner_writer), pump(inner_reader, writer))

    server = await asyncio.start_server(relay, "127.0.0.1", 0, ssl=http_context(config))
    yield server.sockets[0].getsockname()[1]
    server.close()


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    """Whom clients believe."""
    return Authority(tmp_path)


@pytest.fixture
def config(authority: Authority) -> TlsConfig:
    """What servers show."""
    pair = authority.issue("redis", "127.0.0.1")
    return TlsConfig(certificate=pair.certificate, key=pair.key)


@pytest.fixture
async def tls_port(config: TlsConfig, redis_server: EmbeddedRedis) -> AsyncIterator[int]:
    """A port where the test's Redis listens over TLS."""
    path = urlsplit(redis_server.url).path
    async with over_tls(config, lambda: asyncio.open_unix_connection(path)) as port:
        yield port


async def test_redis_is_reached_over_tls_and_renewed_cas_are_followed(
    tls_port: int, authority: Authority, redis_server: EmbeddedRedis, tmp_path: Path
) -> None:
    """A server under another CA is refused; once the file names that CA, the same client gets through."""
    password = urlsplit(redis_server.url).password or ""
    user = urlsplit(redis_server.url).username or ""
    client = connect(f"rediss://{user}:{password}@127.0.0.1:{tls_port}/0?ssl_ca_certs={authority.file}")
    assert await client.set("shoal:test", "over tls")
    assert await client.get("shoal:test") == b"over tls"

    other = Authority(tmp_path, "new CA")
    other.issue("redis", "127.0.0.1")
    pool = client.connection_pool  # type: ignore[union-attr]  # one server
    await pool.disconnect()
    with pytest.raises(redis.exceptions.ConnectionError):
        await client.get("shoal:test")
    authority.replace(other)

    assert await client.get("shoal:test") == b"over tls"
    await client.aclose()


async def test_a_cluster_is_reached_over_tls_and_renewed_cas_are_followed(
    config: TlsConfig, authority: Authority, tmp_path: Path
) -> None:
    """Each of its nodes, also those that only the cluster itself names."""
    async with contextlib.AsyncExitStack() as stack:
        servers = stack.enter_context(cluster(tmp_path / "redis"))
        ports = []
        for server in servers:
            connected = partial(asyncio.open_connection, "127.0.0.1", server.port)
            ports.append(await stack.enter_async_context(over_tls(config, connected)))
            server.ask("CONFIG", "SET", "cluster-announce-port", ports[-1])
        holds_soon(lambda: all(set(ports) <= _told(server) for server in servers))
        client = connect(f"rediss+cluster://127.0.0.1:{ports[0]}?ssl_ca_certs={authority.file}")
        assert isinstance(client, RedisCluster)
        for key in "abcdef":
            assert await client.set(f"shoal:{key}", key)
        other = Authority(tmp_path, "new CA")
        other.issue("redis", "127.0.0.1")
        for node in client.get_nodes():
            await node.disconnect()
        with pytest.raises(ABSENT):
            await client.get("shoal:a")
        authority.replace(other)

        assert [b"a", b"b", b"c", b"d", b"e", b"f"] == [await client.get(f"shoal:{key}") for key in "abcdef"]
        await client.aclose()


def _told(server: Server) -> set[int]:
    """The ports that a cluster's server names to clients."""
    slots: Any = server.ask("CLUSTER", "SLOTS")
    return {entry[2][1] for entry in slots}


async def test_sentinels_are_asked_over_tls_and_renewed_cas_are_followed(
    config: TlsConfig, authority: Authority, tmp_path: Path
) -> None:
    """Each time anew; what they name is connected to in the same way."""
    with watched(tmp_path / "redis", "p") as service:
        connected = partial(asyncio.open_connection, "127.0.0.1", service.sentinel.port)
        async with over_tls(config, connected) as port:
            client = connect(f"rediss+sentinel://:p@127.0.0.1:{port}/main?ssl_ca_certs={authority.file}")
            pool: Any = client.connection_pool  # type: ignore[union-attr]  # one service
            sentinels = pool.sentinel_manager
            assert await sentinels.discover_master("main") == ("127.0.0.1", service.primary.port)
            other = Authority(tmp_path, "new CA")
            other.issue("redis", "127.0.0.1")
            await sentinels.sentinels[0].connection_pool.disconnect()
            with pytest.raises(redis.exceptions.RedisError):
                await sentinels.discover_master("main")
            authority.replace(other)

            assert await sentinels.discover_master("main") == ("127.0.0.1", service.primary.port)
            assert issubclass(pool.connection_class, FollowingConnection)
            await client.aclose()
