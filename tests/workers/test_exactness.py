"""The same request gives the same tokens bit for bit, whatever runs beside it and wherever it runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from shoal.workers.engine.sequence import Sequence
from shoal.workers.experts.placement import Placement
from shoal.workers.model.sampling import SamplingParams
from tests.workers.engines import GREEDY, make_engine, random_tokens, run, sequence
from tests.workers.groups import run_group

SEEDED = SamplingParams(temperature=1.0, logprobs=True)


def requests() -> list[Sequence]:
    """Greedy and seeded sequences of several lengths, all beyond the sliding window at their end."""
    return [
        sequence(
            random_tokens(n, 1000, seed=n), name=f"r{n}", max_tokens=12, seed=n, sampling=GREEDY if n % 2 else SEEDED
        )
        for n in (3, 17, 30, 41, 64)
    ]


@pytest.fixture(scope="module")
def alone(tiny: Path) -> list[list[int]]:
    """Each request run by itself."""
    engine = make_engine(tiny)
    return [run(engine, s)[0] for s in requests()]


def test_batch_does_not_matter(tiny: Path, alone: list[list[int]]) -> None:
    """All requests together give what each gives alone."""
    assert alone == run(make_engine(tiny), *requests())


@pytest.mark.parametrize("batch_tokens", [16, 29])
def test_chunks_do_not_matter(tiny: Path, alone: list[list[int]], batch_tokens: int) -> None:
    """Prompts cut into odd chunks and mixed with decodes give the same tokens."""
    assert alone == run(make_engine(tiny, batch_tokens=batch_tokens), *requests())


def test_preemption_does_not_matter(tiny: Path, alone: list[list[int]]) -> None:
    """A cache too small for all of them preempts and recomputes, with the same tokens."""
    engine = make_engine(tiny, kv_tokens=112, block_size=8)
    assert alone == run(engine, *requests())
    assert engine.counters.preemptions > 0


@pytest.mark.parametrize("size", [2, 4])
def test_expert_parallel_size_does_not_matter(tiny: Path, alone: list[list[int]], size: int) -> None:
    """Experts sharded over 2 and 4 ranks, sequences spread unevenly (some ranks idle): the same tokens."""
    r = requests()
    per_rank = [r, []] if size == 2 else [r[:2], [], r[2:], []]
    assert alone == run_group(tiny, size, per_rank)


def test_copies_of_experts_do_not_matter(tiny: Path, alone: list[list[int]]) -> None:
    """Experts held by two ranks at once: whichever copy serves, the same tokens."""
    holders = tuple(((e % 2,) if e < 4 else (0, 1)) for e in range(8))
    r = requests()
    assert alone == run_group(tiny, 2, [r[:2], r[2:]], Placement(2, (holders,) * 4))


def test_replay_does_not_matter(tiny: Path, alone: list[list[int]]) -> None:
    """Prompt plus the tokens already sent, submitted elsewhere, goes on with the same tokens."""
    engine = make_engine(tiny)
    for s, expected in zip(requests(), alone, strict=True):
        replay = sequence(
            s.tokens + expected[:5], name="again", max_tokens=12, seed=s.seed, sampling=s.sampling, start_offset=5
        )
        assert [expected] == run(engine, replay)
