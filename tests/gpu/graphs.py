"""Decode steps that are recorded, that overlap, that choose on the device: the tokens of the plain path."""

from __future__ import annotations

from dataclasses import replace

from shoal.workers.engine.engine import Engine
from shoal.workers.engine.sequence import Sequence, StopParams
from shoal.workers.model.sampling import SamplingParams
from tests.gpu.extent import Extent
from tests.gpu.telling import Teller
from tests.workers.engines import GREEDY, engine_of, random_tokens, sequence

_OUTPUT = 24
_WAYS = (
    GREEDY,
    SamplingParams(),
    SamplingParams(temperature=0.0, logprobs=True, top_logprobs=5),
    SamplingParams(temperature=0.8, top_k=40, top_p=0.9, min_p=0.01),
    SamplingParams(temperature=0.0, presence_penalty=0.5),  # the host's
    SamplingParams(temperature=1.5, top_p=0.95),
)


def compare(extent: Extent, tell: Teller) -> None:
    """Requests of every kind that come and end at different times, on one engine's weights."""
    name, some = extent.small.name, 9 if extent.on_gpu else 6
    engine = engine_of(
        extent.source(extent.small), device=extent.device, sampler="device", graphs=True, caching=False,
        kv_tokens=16384 if extent.on_gpu else 1024, batch_tokens=64,
    )  # fmt: skip
    assert engine.decoder is not None, "graphs were asked for"
    plain = replace(engine, decoder=None)
    expected = _tokens(plain, extent, some)

    def check(what: str, found: list[list[int]], **more: object) -> None:
        differing = sum(a != b for a, b in zip(expected, found, strict=True))
        tell.check(f"{name}: {what}", differing == 0, sequences=some, differing=differing, **more)

    check("recorded steps give the tokens of launched ones", _tokens(engine, extent, some), replays=_replays(engine))
    overlapping = replace(engine, limits=replace(engine.limits, overlap=True))
    check("so do recorded steps that overlap", _tokens(overlapping, extent, some), replays=_replays(engine))
    launched = replace(overlapping, decoder=None)
    check("and launched ones that overlap", _tokens(launched, extent, some))
    check("and each sequence alone", [_tokens(plain, extent, some, only=i)[0] for i in range(some)])
    _compare_samplers(engine, extent, tell, some)


def _compare_samplers(engine: Engine, extent: Extent, tell: Teller, some: int) -> None:
    """The host's own sampler over the same logits: greedy tokens are the same; a draw may fall beside an edge."""
    model, greedy = engine.model, [i for i in range(some) if _WAYS[i % len(_WAYS)].temperature == 0.0]
    device = [_tokens(engine, extent, some, only=i)[0] for i in greedy]
    before, model.target = model.target, replace(model.target, sampler="host")
    try:
        host = [_tokens(replace(engine), extent, some, only=i)[0] for i in greedy]
    finally:
        model.target = before
    differing = sum(a != b for a, b in zip(host, device, strict=True))
    tell.check(
        f"{extent.small.name}: the device's greedy tokens are the host's", differing == 0, sequences=len(greedy),
        differing=differing,
    )  # fmt: skip


def _tokens(engine: Engine, extent: Extent, some: int, only: int | None = None) -> list[list[int]]:
    """What they generate: a new one comes every third step, some end at a stop token, some may not stop early."""
    made = [_request(i, extent) for i in range(some) if only in (None, i)]
    coming = list(made)
    while coming or engine.has_work:
        if coming:
            engine.submit(coming.pop(0))
        for _ in range(3):
            engine.step()
    engine.check_integrity()
    return [s.tokens[s.given_length :] for s in made]


def _request(number: int, extent: Extent) -> Sequence:
    vocabulary = extent.small.vocab_size
    ends = frozenset(random_tokens(vocabulary // 20, vocabulary, seed=number)) if number % 3 == 0 else frozenset[int]()
    return sequence(
        random_tokens(5 + 23 * number, vocabulary, seed=number), name=f"r{number}", seed=number,
        sampling=_WAYS[number % len(_WAYS)],
        stop=StopParams(_OUTPUT, min_tokens=5 if number % 2 else 0, stop_token_ids=ends),
    )  # fmt: skip


def _replays(engine: Engine) -> int:
    return engine.decoder.replays if engine.decoder is not None else 0
