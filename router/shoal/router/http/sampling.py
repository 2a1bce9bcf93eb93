"""The part of a request that says how tokens are chosen and when generation ends; OpenAI's names and vLLM's."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from shoal.proto.v1 import inference_pb2 as api
from shoal.router.http.errors import ParameterError

Count = Annotated[int, Field(ge=0, le=2**32 - 1)]
Positive = Annotated[int, Field(ge=1, le=2**32 - 1)]
Number = Annotated[float, Field(allow_inf_nan=False)]

_NUMBERS = (
    "temperature", "top_p", "top_k", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty",
)  # fmt: skip


class Strict(BaseModel):
    """A JSON object in which every field is known and of its own type."""

    model_config = ConfigDict(extra="forbid", strict=True, protected_namespaces=())


class Sampled(Strict):
    """Fields that every kind of generation has. Null is as good as absent."""

    temperature: Number | None = None
    top_p: Number | None = None
    seed: int | None = None
    presence_penalty: Number | None = None
    frequency_penalty: Number | None = None
    logit_bias: dict[str, Number] | None = None
    # What OpenAI does not have, under the names that other servers use.
    top_k: Annotated[int, Field(ge=-1, le=2**32 - 1)] | None = None
    min_p: Number | None = None
    repetition_penalty: Number | None = None
    min_tokens: Count | None = None
    stop_token_ids: list[Count] | None = None
    ignore_eos: bool | None = None


def sampling_of(body: Sampled) -> api.Sampling:
    """How tokens are chosen. Ranges are checked by whoever serves it. Raises ParameterError."""
    sampling = api.Sampling()
    for name in _NUMBERS:
        if (value := getattr(body, name)) is not None:
            setattr(sampling, name, max(0, value) if name == "top_k" else value)  # -1 is vLLM's "all"
    if body.seed is not None:
        sampling.seed = body.seed % 2**64  # OpenAI's seeds may be negative
    for token, bias in (body.logit_bias or {}).items():
        if not token.isascii() or not token.isdigit() or int(token) >= 2**32:
            raise ParameterError(
                f"Invalid key in 'logit_bias': {token[:32]!r} is not a token id.", "logit_bias", "invalid_value"
            )
        sampling.logit_bias[int(token)] = bias
    return sampling


def limits_of(body: Sampled, most: int | None, stop: str | list[str] | None) -> api.Limits:
    """When generation ends: after `most` tokens, or before one of the texts `stop`."""
    return api.Limits(
        max_tokens=most,
        min_tokens=body.min_tokens,
        stop=[stop] if isinstance(stop, str) else stop,
        stop_token_ids=body.stop_token_ids,
        ignore_eos=bool(body.ignore_eos),
    )


def rename_sampling(field: str) -> str:
    """What a caller calls one of our fields.

    >>> rename_sampling("sampling.temperature"), rename_sampling("limits.max_tokens")
    ('temperature', 'max_tokens')
    """
    return field.removeprefix("sampling.").removeprefix("limits.")
