"""Redis over TLS, with certificates that are renewed: a real server behind a listener that speaks TLS for it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import redis.exceptions

from shoal.cluster.embedded_redis import EmbeddedRedis
from shoal.router.store.connect import connect
from shoal.wire.tls import TlsConfig, http_context
from tests.certificates import Authority


@pytest.fixture
async def tls_port(tmp_path: Path, redis_server: EmbeddedRedis) -> AsyncIterator[tuple[int, Authority, TlsConfig]]:
    """A port where the test's Redis listens over TLS, and by what."""
    authority = Authority(tmp_path)
    pair = authority.issue("redis", "127.0.0.1")
    config = TlsConfig(certificate=pair.certificate, key=pair.key)
    path = urlsplit(redis_server.url).path

    async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        inner_reader, inner_writer = await asyncio.open_unix_connection(path)

        async def pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
            with contextlib.suppress(OSError):
                while data := await source.read(65536):
                    sink.write(data)
                    await sink.drain()
            sink.close()

        await asyncio.gather(pump(reader, inner_writer), pump(inner_reader, writer))

    server = await asyncio.start_server(relay, "127.0.0.1", 0, ssl=http_context(config))
    yield server.sockets[0].getsockname()[1], authority, config
    server.close()


async def test_redis_is_reached_over_tls_and_renewed_cas_are_followed(
    tls_port: tuple[int, Authority, TlsConfig], redis_server: EmbeddedRedis, tmp_path: Path
) -> None:
    """A server under another CA is refused; once the file names that CA, the same client gets through."""
    port, authority, _ = tls_port
    password = urlsplit(redis_server.url).password or ""
    user = urlsplit(redis_server.url).username or ""
    client = connect(f"rediss://{user}:{password}@127.0.0.1:{port}/0?ssl_ca_certs={authority.file}")
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
