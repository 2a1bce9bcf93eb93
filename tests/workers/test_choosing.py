"""Where a token is chosen, and that nothing but a sequence's own parameters decides it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shoal.kernels import target as targets
from shoal.workers.config import WorkerConfig
from shoal.workers.engine.engine import Engine
from shoal.workers.engine.masks import Bits, Masks
from shoal.workers.engine.output import Output
from shoal.workers.engine.sequence import Sequence, StopParams
from shoal.workers.errors import ConfigError
from shoal.workers.model.sampling import Sampled, SamplingParams
from tests.workers.engines import GREEDY, make_engine, random_tokens, run, sequence

WAYS = {
    "greedy": GREEDY,
    "warm": SamplingParams(),
    "top_k": SamplingParams(top_k=20),
    "top_p": SamplingParams(temperature=1.5, top_p=0.8),
    "min_p": SamplingParams(temperature=2.0, min_p=0.02),
    "all": SamplingParams(temperature=0.7, top_k=50, top_p=0.95, min_p=0.001, logprobs=True, top_logprobs=3),
    "told": SamplingParams(temperature=0.0, logprobs=True, top_logprobs=20),
    "penalties": SamplingParams(repetition_penalty=1.3, presence_penalty=0.4, frequency_penalty=0.2),
    "bias": SamplingParams(temperature=0.0, logit_bias={5: 3.0, 17: -2.0}),
}


def one(name: str, **fields: object) -> Sequence:
    seed = list(WAYS).index(name)
    made = sequence(random_tokens(5 + seed, 1000, seed), name=name, max_tokens=20, seed=seed, sampling=WAYS[name])
    for field, value in fields.items():
        setattr(made, field, value)
    return made


@pytest.mark.parametrize("sampler", ["host", "device"])
def test_neighbours_decide_nothing(tiny: Path, sampler: str) -> None:
    """Every way to choose, all at once and each alone: the same tokens, those of the host's sampler."""
    expected = [run(make_engine(tiny), one(name))[0] for name in WAYS]
    assert expected == run(make_engine(tiny, sampler=sampler), *map(one, WAYS))
    assert expected == [run(make_engine(tiny, sampler=sampler), one(name))[0] for name in WAYS]


def test_both_tell_the_same(tiny: Path) -> None:
    """Log-probabilities of tokens, of the likeliest, and of the prompt, to fp32's precision."""
    told = []
    for sampler in ("host", "device"):
        engine = make_engine(tiny, sampler=sampler)
        for made in (one("all"), one("told", prompt_logprobs=True), one("penalties", prompt_logprobs=True)):
            engine.submit(made)
        outputs: list[Output] = []
        while engine.has_work:
            outputs += engine.step().outputs
        found = [t for o in outputs for t in (*o.prompt, *((o.token,) if o.token else ()))]
        told.append(([(t.id, [i for i, _ in t.top]) for t in found], [t.logprob or 0.0 for t in found]))
    (host, known), (device, found_too) = told
    assert host == device
    np.testing.assert_allclose(known, found_too, atol=2e-5)


@pytest.mark.parametrize("options", [{}, {"sampler": "device", "overlap": True}])
def test_the_prompt_is_told_once(tiny: Path, options: dict[str, Any]) -> None:
    """Who is preempted, in its prompt or behind it, computes it again, and tells each log-probability once."""

    def told(**sizes: int) -> tuple[list[Sampled], Engine]:
        engine = make_engine(tiny, batch_tokens=16, block_size=8, **sizes, **options)
        made = [sequence(random_tokens(20 + 8 * n, 1000, n), name=f"r{n}", max_tokens=50) for n in range(3)]
        outputs: list[Output] = []
        for s in made:
            s.prompt_logprobs = True
            engine.submit(s)
        while engine.has_work:
            outputs += engine.step().outputs
        engine.check_integrity()
        return [p for s in made for o in outputs if o.sequence is s for p in o.prompt], engine

    (expected, roomy), (found, narrow) = told(kv_tokens=2048), told(kv_tokens=96)
    assert [0, True] == [roomy.counters.preemptions, narrow.counters.preemptions > 0]
    assert [token for n in range(3) for token in random_tokens(20 + 8 * n, 1000, n)[1:]] == [p.id for p in expected]
    assert expected == found


@pytest.mark.parametrize("overlap", [False, True])
def test_what_a_sequence_computed_itself_was_not_cached(tiny: Path, overlap: bool) -> None:
    """One is preempted in its prompt and finds its own blocks again: that is no hit of the prefix cache."""
    options = {"sampler": "device", "overlap": True} if overlap else {}
    engine = make_engine(tiny, kv_tokens=96, block_size=8, batch_tokens=4, **options)
    engine.submit(sequence(random_tokens(16, 1000, 2), name="first", max_tokens=40))
    for _ in range(6):
        engine.step()
    engine.submit(late := sequence(random_tokens(70, 1000, 1), name="late", max_tokens=4))
    again = 0
    while engine.has_work:
        before, resting = engine.counters.prompt_tokens, late in engine.waiting
        engine.step()
        again = max(again, late.computed - (engine.counters.prompt_tokens - before)) if resting else again
    engine.check_integrity()
    assert engine.counters.preemptions > 0
    assert again > 0, "nothing was found again"
    assert [0, 0] == [late.cached, engine.counters.cached_tokens]


@pytest.mark.parametrize("sampler", ["host", "device"])
def test_nothing_stops_before_min_tokens(tiny: Path, sampler: str) -> None:
    """Whatever would have come: a stop token is masked until then, and guesses know it too."""
    plain = run(make_engine(tiny), one("greedy"))[0]
    for speculate in (0, 3):
        early = one("greedy", stop=StopParams(max_tokens=20, min_tokens=9, stop_token_ids=frozenset(plain)))
        (found,) = run(make_engine(tiny, sampler=sampler, speculate=speculate), early)
        assert not set(found[:8]) & set(plain)
        assert len(found) >= 9


def test_a_mask_is_made_once() -> None:
    """The same list twice is the same row; another list, or the list grown, is not mistaken for it."""
    masks, rows = Masks(70), list[Bits]()

    class Place:
        def __init__(self, *ids: int) -> None:
            self.ids = np.array(ids)

        def barred(self) -> None: ...

        def allowed(self) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
            return self.ids

    here, there = Place(3, 69), Place(3, 69)
    none = frozenset[int]()
    found = [masks.row(rows, place, early) for place in (here, there, here) for early in (none, frozenset({3}))]  # type: ignore[arg-type]  # what a cursor's place looks like

    assert [0, 1, 2, 3, 0, 1] == found
    assert -1 == masks.row(rows, None, none)
    bits = [np.flatnonzero(np.unpackbits(row.view(np.uint8), bitorder="little")).tolist() for row in rows]
    assert [[3, 69], [69]] * 2 == bits


def test_the_kernel_class_tells_who_samples() -> None:
    """The two round differently: a migration from one to the other must be seen as such."""
    host, device = (targets.choose("cpu", sampler=sampler) for sampler in ("host", "device"))
    assert replace(host, sampler="device", kernel_class=f"{host.kernel_class}-sampler1") == device
    assert host == targets.choose("cpu")
    with pytest.raises(targets.BackendError, match="auto, host or device"):
        targets.choose("cpu", sampler="elsewhere")
    with pytest.raises(ConfigError, match=r"^worker\.sampler must be "):
        WorkerConfig(model="m", sampler="elsewhere")
