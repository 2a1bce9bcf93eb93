"""uvicorn on the router's own event loop: it neither owns the process nor its signals."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Generator
from typing import Any

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from shoal.wire.credentials import join_address
from shoal.wire.tls import TlsConfig, http_context

_MOST_HEADER_BYTES = 64 * 1024
_KEEP_ALIVE_SECONDS = 30
_BACKLOG = 1024
_LOOK_SECONDS = 0.01


class _Server(uvicorn.Server):
    """Says when it accepts connections, and leaves signals to the router."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.accepting = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """See uvicorn.Server."""
        await super().startup(sockets)
        self.accepting.set()

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """None."""
        yield


class _Connection(H11Protocol):
    """Tells the application whose certificate the connection has."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        """See asyncio.Protocol."""
        super().connection_made(transport)
        tls = transport.get_extra_info("ssl_object")
        certificate = tls.getpeercert(binary_form=True) if tls is not None else None
        if certificate:
            application: Any = self.app

            async def knowing(scope: Any, receive: Any, send: Any) -> None:
                await application({**scope, "client_certificate": certificate}, receive, send)

            self.app = knowing


class Listener:
    """Serves an application on one address."""

    def __init__(self, application: ASGIApp, host: str, port: int, tls: TlsConfig | None = None) -> None:
        """Listens at once; port 0 takes a free one. Raises OSError when it cannot be had. In the clear without `tls`.

        Applications find a client's certificate, DER, in the scope as `client_certificate`.
        """
        bare = host.strip("[]")
        family = socket.AF_INET6 if ":" in bare else socket.AF_INET
        self._socket = socket.create_server((bare, port), family=family, backlog=_BACKLOG)
        self.address = join_address(host, self._socket.getsockname()[1])
        config = uvicorn.Config(
            application,
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            ws="none",
            http=_Connection,
            h11_max_incomplete_event_size=_MOST_HEADER_BYTES,
            timeout_keep_alive=_KEEP_ALIVE_SECONDS,
        )
        if tls is not None and tls.serves:
            config.load()
            config.ssl = http_context(tls)
        self._server = _Server(config)
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Accept connections."""
        self._task = asyncio.create_task(self._server.serve(sockets=[self._socket]), name="http")
        await self._server.accepting.wait()

    async def stop(self, grace: float) -> None:
        """Accept nothing more, give running requests `grace` seconds, then cancel them. Safe to call again."""
        if self._task is None:
            self._socket.close()
            return
        state = self._server.server_state
        for server in self._server.servers:
            server.close()
        for connection in list(state.connections):
            connection.shutdown()  # an idle one at once, a busy one after its answer
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(grace):
                while state.tasks or state.connections:  # noqa: ASYNC110  # uvicorn tells nobody when they end
                    await asyncio.sleep(_LOOK_SECONDS)
        for request in list(state.tasks):
            request.cancel()
        self._task.cancel()
        await asyncio.gather(self._task, *state.tasks, return_exceptions=True)
