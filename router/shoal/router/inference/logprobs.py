"""Log-probabilities as a worker tells them and as clients read them. Pure."""

from __future__ import annotations

from shoal.proto.v1 import inference_pb2 as api
from shoal.router.fleet.backend import Tokens
from shoal.router.tokenizer import Tokenizer


def logprobs_of(output: Tokens, tokenizer: Tokenizer) -> list[api.TokenLogprob]:
    """One per id of the output, or none at all when they were not asked for."""
    if len(output.logprobs) < len(output.ids):
        return []
    told = []
    for index, token in enumerate(output.ids):
        rivals = output.likeliest[index].top if index < len(output.likeliest) else ()
        likeliest = [
            api.LikelyToken(id=rival.id, bytes=tokenizer.bytes_of(rival.id), logprob=rival.logprob) for rival in rivals
        ]
        told.append(
            api.TokenLogprob(
                id=token, bytes=tokenizer.bytes_of(token), logprob=output.logprobs[index], likeliest=likeliest
            )
        )
    return told
