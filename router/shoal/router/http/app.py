"""The HTTP API as one ASGI application: which path is served by what."""

from __future__ import annotations

from collections.abc import Callable

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from shoal.router.http.chat.endpoint import ChatCompletions
from shoal.router.http.errors import Problem
from shoal.router.http.gate import Gate
from shoal.router.http.probes import Probes
from shoal.router.http.rim import Endpoint, Handler
from shoal.router.rim import Rim


def build(gate: Gate, ready: Callable[[], dict[str, bool]], most_bytes: int) -> ASGIApp:
    """Everything under one roof. `ready` is what `/readyz` tells; larger bodies than `most_bytes` are refused."""
    rim = Rim(gate.metrics, gate.max_request_seconds)
    chat = ChatCompletions(gate)
    probes = Probes(gate.metrics, ready)

    def api(path: str, method: str, name: str, handle: Handler) -> Route:
        return Route(path, Endpoint(name, handle, gate, rim, most_bytes), methods=[method])

    routes = [
        api("/v1/chat/completions", "POST", "http.ChatCompletions", chat.create),
        Route("/healthz", probes.live),
        Route("/readyz", probes.ready),
        Route("/metrics", probes.metrics),
    ]
    return Starlette(routes=routes, exception_handlers={HTTPException: _refused})


async def _refused(request: Request, error: Exception) -> Response:
    """A path or a method that does not exist, in OpenAI's shape."""
    assert isinstance(error, HTTPException)
    what = f"{request.method} {request.url.path}"
    message = f"Unknown request URL: {what}" if error.status_code == 404 else f"{error.detail}: {what}"
    problem = Problem(error.status_code, "invalid_request_error", "unknown_url", message)
    return JSONResponse(problem.body, error.status_code, {**problem.headers, **(error.headers or {})})
