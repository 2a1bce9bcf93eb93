"""What can be asked without generating: the models, and what something is in tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from shoal.proto.v1 import inference_pb2 as api
from shoal.router.errors import FieldError
from shoal.router.fleet.backend import Backend
from shoal.router.inference.chat import Chat
from shoal.router.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class Models:
    """Serves `ListModels` and `Tokenize`."""

    chat: Chat
    backend: Backend
    tokenizer: Tokenizer
    server_tools: Sequence[str]
    created_at: float
    """Unix time, seconds, since which this router serves."""

    def served(self) -> api.ListModelsResponse:
        """The model, ready or not."""
        facts = self.backend.model()
        model = api.Model(
            id=self.chat.settings.model,
            created_at=self.created_at,
            max_context=facts.max_context if facts is not None else 0,
            vocab_size=facts.vocab_size if facts is not None else 0,
            tokenizer_hash=self.tokenizer.hash,
            server_tools=self.server_tools,
            ready=facts is not None,
        )
        return api.ListModelsResponse(models=[model])

    async def tokenized(self, request: api.TokenizeRequest, tenant: str) -> api.TokenizeResponse:
        """The ids of a text, or of the prompt of a turn. Raises FieldError, and for a turn whatever `Chat` raises."""
        match request.WhichOneof("input"):
            case "text":
                ids = await self.tokenizer.encode_off_loop(request.text)
            case "chat":
                ids = await self.chat.prompt(request.chat, tenant)
            case _:
                raise FieldError("input", "is missing: give text or chat")
        facts = self.backend.model()
        return api.TokenizeResponse(
            ids=ids,
            pieces=[self.tokenizer.bytes_of(token) for token in ids],
            max_context=facts.max_context if facts is not None else 0,
        )
