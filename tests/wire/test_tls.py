"""Encrypted hops, and certificates that are renewed while they are in use."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from shoal.wire.credentials import add_port, open_channel
from shoal.wire.options import server_options
from shoal.wire.settings import SettingError
from shoal.wire.tls import (
    INTERNAL_NAME,
    TlsConfig,
    calling_credentials,
    http_context,
    internal_client,
    internal_server,
    serving_credentials,
)
from tests.certificates import Authority, Pair


class Echo(grpc.GenericRpcHandler):
    """Answers any call with who called it."""

    def service(self, details: grpc.HandlerCallDetails) -> Any:
        """One handler for everything."""

        async def answer(request: bytes, context: Any) -> bytes:
            return b"".join(context.auth_context().get("x509_common_name", [b"nobody"]))

        return grpc.unary_unary_rpc_method_handler(answer)


@pytest.fixture
async def serve() -> AsyncIterator[Any]:
    """Starts echo servers with credentials; gives their ports."""
    servers: list[grpc.aio.Server] = []

    async def start(credentials: grpc.ServerCredentials | None) -> int:
        server = grpc.aio.server(options=server_options())
        server.add_generic_rpc_handlers((Echo(),))
        servers.append(server)
        port = add_port(server, "127.0.0.1", 0, credentials)
        await server.start()
        return port

    yield start
    for server in servers:
        await server.stop(0)


async def call(port: int, credentials: grpc.ChannelCredentials | None, name: str = "") -> str:
    """One call on a connection of its own."""
    async with open_channel(f"127.0.0.1:{port}", credentials=credentials, name=name) as channel:
        method: Any = channel.unary_unary("/x/y")  # bytes both ways
        answered: bytes = await method(b"", timeout=5)
    return answered.decode()


def overwrite(path: str, content: bytes | str) -> None:
    """With bytes, or with another file."""
    Path(path).write_bytes(content if isinstance(content, bytes) else Path(content).read_bytes())


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    """A CA."""
    return Authority(tmp_path)


def internal(authority: Authority, pair: Pair) -> TlsConfig:
    """The hop to workers."""
    return TlsConfig(internal_ca=authority.file, internal_certificate=pair.certificate, internal_key=pair.key)


async def test_a_server_follows_a_renewed_certificate(authority: Authority, tmp_path: Path, serve: Any) -> None:
    """A new connection sees the new certificate, under a new CA, without a restart; half-written files do no harm."""
    pair = authority.issue("server", "127.0.0.1")
    port = await serve(serving_credentials(pair.certificate, pair.key, "", required=False))
    assert await call(port, calling_credentials(authority.file)) == "nobody"

    overwrite(pair.key, b"half written")
    assert await call(port, calling_credentials(authority.file)) == "nobody"
    other = Authority(tmp_path, "new CA")
    other.issue("server", "127.0.0.1")

    assert await call(port, calling_credentials(other.file)) == "nobody"
    with pytest.raises(grpc.aio.AioRpcError):
        await call(port, calling_credentials(authority.file))


async def test_router_and_worker_believe_each_other_by_certificate(
    authority: Authority, tmp_path: Path, serve: Any
) -> None:
    """Either end refuses the other without one, with another CA's, and with another name."""
    config = internal(authority, authority.issue("internal", INTERNAL_NAME))
    port = await serve(internal_server(config))
    assert await call(port, internal_client(config), INTERNAL_NAME) == INTERNAL_NAME

    stranger = Authority(tmp_path, "stranger")
    theirs = stranger.issue("theirs", INTERNAL_NAME)
    wrong: list[tuple[grpc.ChannelCredentials | None, str]] = [
        (None, ""),
        (calling_credentials(authority.file), INTERNAL_NAME),
        (calling_credentials(authority.file, theirs.certificate, theirs.key), INTERNAL_NAME),
        (internal_client(internal(stranger, theirs)), INTERNAL_NAME),
        (internal_client(config), "another-name"),
    ]
    for credentials, name in wrong:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call(port, credentials, name)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_http_follows_renewed_certificates_and_client_cas(authority: Authority, tmp_path: Path) -> None:
    """The next connection gets the new certificate, and a client of the new CA is known."""
    pair = authority.issue("server", "127.0.0.1")
    config = TlsConfig(certificate=pair.certificate, key=pair.key, client_ca=authority.file)

    async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peer = writer.get_extra_info("ssl_object").getpeercert()
        writer.write(b"known" if peer else b"unknown")
        writer.close()

    server = await asyncio.start_server(greet, "127.0.0.1", 0, ssl=http_context(config))
    port = server.sockets[0].getsockname()[1]

    async def ask(ca: str, client: Pair | None = None) -> str:
        context = ssl.create_default_context(cafile=ca)
        if client is not None:
            context.load_cert_chain(client.certificate, client.key)
        reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
        said = await reader.read()
        writer.close()
        return said.decode()

    ours = authority.issue("client", "someone")
    assert await ask(authority.file) == "unknown"
    assert await ask(authority.file, ours) == "known"
    other = Authority(tmp_path, "new CA")
    other.issue("server", "127.0.0.1")
    overwrite(authority.file, other.file)
    theirs = other.issue("client2", "someone")

    assert await ask(other.file, theirs) == "known"
    assert await ask(other.file, ours) not in ("known", "unknown")
    server.close()


@pytest.mark.parametrize(
    ("given", "key"),
    [
        ({"certificate": "a"}, "key"),
        ({"key": "a"}, "key"),
        ({"client_ca": "a"}, "client_ca"),
        ({"internal_ca": "a"}, "internal_ca"),
        ({"internal_key": "a"}, "internal_ca"),
    ],
)
def test_half_a_hop_is_refused(given: dict[str, str], key: str) -> None:
    """Files that belong together are given together, or the missing setting is named."""
    with pytest.raises(SettingError, match=rf"tls\.{key}"):
        TlsConfig(**given)


def test_files_are_checked_before_anything_listens(authority: Authority, tmp_path: Path) -> None:
    """A file that is not there, and a key that is not the certificate's, are told by their setting."""
    pair, other = authority.issue("one", "127.0.0.1"), authority.issue("two", "127.0.0.1")
    TlsConfig(certificate=pair.certificate, key=pair.key).check_files()
    with pytest.raises(SettingError, match=r"tls\.key: .*gone"):
        TlsConfig(certificate=pair.certificate, key=str(tmp_path / "gone")).check_files()
    with pytest.raises(SettingError, match=r"tls\.certificate and tls\.key"):
        TlsConfig(certificate=pair.certificate, key=other.key).check_files()
