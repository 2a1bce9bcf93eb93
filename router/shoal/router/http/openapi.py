"""`/openapi.json`, made from the same models that requests are checked with, and `/docs`, a page to read it on.

The page needs nothing from anywhere else: it also works on a machine without internet.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from html import escape
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response

from shoal.router.http.chat.request import ChatBody
from shoal.router.http.completions import CompletionBody
from shoal.router.http.responses.request import ResponseBody

_METHODS: tuple[tuple[str, str, str, type[BaseModel] | None], ...] = (
    ("post", "/v1/chat/completions", "One turn of a conversation that the caller keeps", ChatBody),
    ("post", "/v1/responses", "One turn of a conversation that the server keeps", ResponseBody),
    ("get", "/v1/responses/{response_id}", "A stored response as of now", None),
    ("delete", "/v1/responses/{response_id}", "Forget a response", None),
    ("post", "/v1/responses/{response_id}/cancel", "Stop a response that runs in the background", None),
    ("get", "/v1/responses/{response_id}/input_items", "What was said to a response", None),
    ("post", "/v1/completions", "Raw continuation of a text or of token ids", CompletionBody),
    ("get", "/v1/models", "What is served", None),
    ("get", "/v1/models/{model}", "One model", None),
    ("get", "/healthz", "Does the process live", None),
    ("get", "/readyz", "Can it serve", None),
    ("get", "/metrics", "What it has counted, as Prometheus reads it", None),
)
_ERROR = {
    "type": "object",
    "properties": {
        "error": {
            "type": "object",
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
        }
    },
}


@cache
def document() -> dict[str, Any]:
    """The OpenAPI document."""
    models = [(model, "validation") for *_, model in _METHODS if model is not None]
    refs, schemas = models_json_schema(models, ref_template="#/components/schemas/{model}")  # type: ignore[arg-type]  # a list of literals
    paths: dict[str, dict[str, Any]] = {}
    for method, path, summary, model in _METHODS:
        operation: dict[str, Any] = {
            "summary": summary,
            "responses": {
                "200": {"description": "As OpenAI's API answers"},
                "default": {"$ref": "#/components/responses/Error"},
            },
        }
        if "{" in path:
            name = path[path.index("{") + 1 : path.index("}")]
            operation["parameters"] = [{"name": name, "in": "path", "required": True, "schema": {"type": "string"}}]
        if model is not None:
            content = {"application/json": {"schema": refs[(model, "validation")]}}
            operation["requestBody"] = {"required": True, "content": content}
        paths.setdefault(path, {})[method] = operation
    error = {"description": "What went wrong", "content": {"application/json": {"schema": _ERROR}}}
    return {
        "openapi": "3.1.0",
        "info": {"title": "shoal", "version": _version(), "description": "GPT-OSS over OpenAI's HTTP API"},
        "paths": paths,
        "components": {"schemas": schemas.get("$defs", {}), "responses": {"Error": error}},
    }


async def serve_document(request: Request) -> Response:
    """`/openapi.json`."""
    return JSONResponse(document())


async def serve_page(request: Request) -> Response:
    """`/docs`."""
    return HTMLResponse(_page())


@cache
def _page() -> str:
    schemas = document()["components"]["schemas"]
    parts = []
    for method, path, summary, model in _METHODS:
        parts.append(f"<h2><code>{method.upper()} {escape(path)}</code></h2><p>{escape(summary)}.</p>")
        if model is not None:
            parts.append(_fields(schemas[model.__name__]))
    return _HTML.format(body="\n".join(parts))


def _fields(schema: Mapping[str, Any]) -> str:
    required = set(schema.get("required", ()))
    rows = (
        f"<tr><td><code>{escape(name)}</code></td><td>{escape(_kind(value))}</td>"
        f"<td>{'required' if name in required else ''}</td></tr>"
        for name, value in schema["properties"].items()
    )
    return f"<table>{''.join(rows)}</table>"


def _kind(schema: Mapping[str, Any]) -> str:
    """A type in a few words."""
    if "anyOf" in schema:
        return " | ".join(_kind(branch) for branch in schema["anyOf"] if branch.get("type") != "null")
    if "$ref" in schema:
        return str(schema["$ref"]).rpartition("/")[2]
    if "enum" in schema:
        return " | ".join(map(str, schema["enum"]))
    if schema.get("type") == "array":
        return f"array of {_kind(schema.get('items', {}))}"
    return str(schema.get("type", "any"))


def _version() -> str:
    try:
        return version("shoal")
    except PackageNotFoundError:
        return "0"


_HTML = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>shoal</title>
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 52rem; margin: 2rem auto; padding: 0 1rem }}
td {{ padding: .1rem 1rem .1rem 0; vertical-align: top }}
</style></head><body>
<h1>shoal</h1>
<p>GPT-OSS over OpenAI's HTTP API. For programs: <a href="openapi.json">openapi.json</a>.</p>
{body}
</body></html>
"""
