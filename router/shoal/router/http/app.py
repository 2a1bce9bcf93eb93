"""The HTTP API as one ASGI application: which path is served by what."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from shoal.proto.v1 import inference_pb2 as pb
from shoal.router.http import openapi
from shoal.router.http.chat.endpoint import ChatCompletions
from shoal.router.http.completions import Completions
from shoal.router.http.errors import Problem
from shoal.router.http.gate import Gate
from shoal.router.http.models import Models
from shoal.router.http.probes import Probes
from shoal.router.http.responses.conversation import Conversations
from shoal.router.http.responses.endpoint import Responses
from shoal.router.http.responses.records import Records
from shoal.router.http.rim import Endpoint, Handler, Page, guarded
from shoal.router.rim import Rim


@dataclass(frozen=True, slots=True)
class Api:
    """The application, and what to call before what is under it goes away, with the seconds that running work gets."""

    application: ASGIApp
    close: Callable[[float], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What the API needs to know of the router that it is part of."""

    ready: Callable[[], dict[str, bool]]
    """Which parts serve, for `/readyz`."""
    models: Callable[[], Sequence[pb.Model]]
    records: Records | None
    """None: this router has no Redis."""
    most_bytes: int
    """Larger bodies are refused."""


def build(gate: Gate, around: Surroundings) -> Api:
    """Everything under one roof."""
    rim = Rim(gate.metrics, gate.max_request_seconds, gate.front.protection)
    chat, completions, models = ChatCompletions(gate), Completions(gate), Models(around.models)
    openings = gate.chat.openings
    responses = Responses(gate, Conversations(around.records, openings.store, openings.renderer))
    probes = Probes(gate.metrics, around.ready)

    def api(path: str, method: str, name: str, handle: Handler) -> Route:
        return Route(path, Endpoint(name, handle, gate, rim, around.most_bytes), methods=[method])

    def page(path: str, name: str, serve: Page) -> Route:
        return Route(path, guarded(name, serve, gate.front.protection))

    routes = [
        api("/v1/chat/completions", "POST", "http.ChatCompletions", chat.create),
        api("/v1/completions", "POST", "http.Completions", completions.create),
        api("/v1/responses", "POST", "http.CreateResponse", responses.create),
        api("/v1/responses/{response_id}", "GET", "http.GetResponse", responses.read),
        api("/v1/responses/{response_id}", "DELETE", "http.DeleteResponse", responses.delete),
        api("/v1/responses/{response_id}/cancel", "POST", "http.CancelResponse", responses.cancel),
        api("/v1/responses/{response_id}/input_items", "GET", "http.ListInputItems", responses.input_items),
        api("/v1/models", "GET", "http.ListModels", models.list),
        api("/v1/models/{model:path}", "GET", "http.GetModel", models.read),
        page("/healthz", "http.Live", probes.live),
        page("/readyz", "http.Ready", probes.ready),
        page("/metrics", "http.Metrics", probes.metrics),
        page("/openapi.json", "http.OpenApi", openapi.serve_document),
        page("/docs", "http.Docs", openapi.serve_page),
    ]
    return Api(Starlette(routes=routes, exception_handlers={HTTPException: _refused}), responses.close)


async def _refused(request: Request, error: Exception) -> Response:
    """A path or a method that does not exist, in OpenAI's shape."""
    assert isinstance(error, HTTPException)
    what = f"{request.method} {request.url.path}"
    message = f"Unknown request URL: {what}" if error.status_code == 404 else f"{error.detail}: {what}"
    problem = Problem(error.status_code, "invalid_request_error", "unknown_url", message)
    return JSONResponse(problem.body, error.status_code, {**problem.headers, **(error.headers or {})})
