"""`GET /v1/models` and `GET /v1/models/{id}`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from shoal.proto.v1 import inference_pb2 as api
from shoal.router.call import Call
from shoal.router.errors import ModelAbsentError
from shoal.router.http.reply import Reply
from shoal.router.http.rim import Asked


class Models:
    """Serves the methods over a list of what is served."""

    def __init__(self, models: Callable[[], Sequence[api.Model]]) -> None:
        self._models = models

    async def list(self, asked: Asked, call: Call) -> Reply:
        """All of them."""
        return Reply({"object": "list", "data": [_model(model) for model in self._models()]})

    async def read(self, asked: Asked, call: Call) -> Reply:
        """One of them. Raises ModelAbsentError."""
        name = asked.path["model"]
        for model in self._models():
            if model.id == name:
                return Reply(_model(model))
        raise ModelAbsentError(f"The model '{name}' does not exist.")


def _model(model: api.Model) -> dict[str, Any]:
    """With `max_model_len` and `ready` besides what OpenAI tells."""
    told = {"id": model.id, "object": "model", "created": int(model.created_at), "owned_by": "shoal"}
    return {**told, "max_model_len": model.max_context or None, "ready": model.ready}
