"""What machines ask: does the process live, can it serve, what has it counted."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from shoal.router.metrics import Metrics


class Probes:
    """`/healthz`, `/readyz` and `/metrics`; none of them waits for anything."""

    def __init__(self, metrics: Metrics, ready: Callable[[], dict[str, bool]]) -> None:
        """`ready` says which parts serve; without "generate" the router is not ready."""
        self._metrics, self._ready = metrics, ready

    async def live(self, request: Request) -> Response:
        """The process answers."""
        return JSONResponse({"status": "ok"})

    async def ready(self, request: Request) -> Response:
        """503 until a worker can be given work, and again while the router shuts down."""
        parts = self._ready()
        serving = parts["generate"]
        return JSONResponse({"status": "ok" if serving else "not ready", **parts}, 200 if serving else 503)

    async def metrics(self, request: Request) -> Response:
        """As Prometheus reads it."""
        return Response(generate_latest(self._metrics.registry), media_type=CONTENT_TYPE_LATEST)
