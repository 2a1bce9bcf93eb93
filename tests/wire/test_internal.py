"""Servers of our own processes, and callers whose certificates the same CA signed for something else."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from shoal.wire.credentials import add_port, open_channel
from shoal.wire.internal import only_internal
from shoal.wire.options import server_options
from shoal.wire.tls import INTERNAL_NAME, TlsConfig, calling_credentials, internal_server
from tests.certificates import Authority, Pair


class Every(grpc.GenericRpcHandler):
    """A method of every kind, which says who was served."""

    def __init__(self) -> None:
        self.served: list[str] = []

    def service(self, details: grpc.HandlerCallDetails) -> Any:
        """By its name."""
        kind = details.method.rpartition("/")[2]

        async def answer(request: Any, context: Any) -> bytes:
            self.served.append(kind)
            return b"yes"

        async def stream(request: Any, context: Any) -> AsyncIterator[bytes]:
            self.served.append(kind)
            yield b"yes"

        handlers: dict[str, Any] = {
            "unary_unary": answer, "unary_stream": stream, "stream_unary": answer, "stream_stream": stream,
        }  # fmt: skip
        return getattr(grpc, f"{kind}_rpc_method_handler")(handlers[kind])


KINDS = ("unary_unary", "unary_stream", "stream_unary", "stream_stream")


@pytest.mark.parametrize("kind", KINDS)
async def test_only_who_has_the_name_is_served(tmp_path: Path, kind: str) -> None:
    """A client of the router whose certificate is of the same CA reaches nothing; methods of every kind."""
    authority, handler = Authority(tmp_path), Every()
    ours, theirs = authority.issue("ours", INTERNAL_NAME), authority.issue("theirs", uri="spiffe://acme/batch")
    config = TlsConfig(internal_ca=authority.file, internal_certificate=ours.certificate, internal_key=ours.key)
    server = grpc.aio.server(interceptors=only_internal(config), options=server_options())
    server.add_generic_rpc_handlers((handler,))
    port = add_port(server, "127.0.0.1", 0, internal_server(config))
    await server.start()

    async def call(pair: Pair) -> grpc.StatusCode:
        credentials = calling_credentials(authority.file, pair.certificate, pair.key)
        async with open_channel(f"127.0.0.1:{port}", credentials=credentials, name=INTERNAL_NAME) as channel:
            method: Any = getattr(channel, kind)(f"/x/{kind}")
            made = method(iter([b""]) if kind.startswith("stream") else b"", timeout=5)
            try:
                if kind.endswith("stream"):
                    assert [answer async for answer in made] == [b"yes"]
                else:
                    assert await made == b"yes"
            except grpc.aio.AioRpcError as error:
                return error.code()
        return grpc.StatusCode.OK

    assert await call(theirs) is grpc.StatusCode.PERMISSION_DENIED
    assert handler.served == []
    assert await call(ours) is grpc.StatusCode.OK
    assert handler.served == [kind]
    await server.stop(0)


def test_in_the_clear_nobody_has_a_name() -> None:
    """Without the internal files there is nothing to look at."""
    assert list(only_internal(TlsConfig())) == []
