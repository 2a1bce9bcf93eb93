"""Two ranks as plain processes that share the one GPU, their exchange through the host: the tokens of one rank."""

from __future__ import annotations

from typing import Any

from shoal.workers.model.sampling import SamplingParams
from tests.gpu.extent import Extent
from tests.gpu.telling import Teller
from tests.workers.engines import GREEDY, random_tokens, sequence
from tests.workers.plain_ranks import Synthetic, generate

_OUTPUT = 16


def compare(extent: Extent, tell: Teller) -> None:
    """The same requests, greedy and drawn, at one rank and dealt out to two."""
    weights = Synthetic(extent.small, 0)
    lengths = (5, 33, extent.step_tokens // 4, 70, 129, 17, 256, 9) if extent.on_gpu else (5, 33, 21)
    drawn = SamplingParams(temperature=1.0)
    sequences = [
        sequence(
            random_tokens(length, extent.small.vocab_size, seed=i), name=f"r{i}", max_tokens=_OUTPUT, seed=i,
            sampling=drawn if i % 2 else GREEDY,
        )
        for i, length in enumerate(lengths)
    ]  # fmt: skip
    sizes: dict[str, Any] = {"kv_tokens": 16384 if extent.on_gpu else 1024, "batch_tokens": extent.step_tokens}
    (alone,) = generate(weights, [sequences], device=extent.device, **sizes)
    ranks = generate(
        weights, [sequences[::2], sequences[1::2]], device=extent.device, place="" if extent.on_gpu else "here", **sizes
    )
    expected = alone.tokens[::2] + alone.tokens[1::2]
    found = ranks[0].tokens + ranks[1].tokens
    differing = sum(a != b for a, b in zip(expected, found, strict=True))
    tell.check(
        f"{extent.small.name}: two ranks on one device give the tokens of one", differing == 0,
        sequences=len(sequences), tokens=sum(map(len, found)), differing=differing,
        staged=all(rank.staged for rank in ranks),
    )  # fmt: skip
