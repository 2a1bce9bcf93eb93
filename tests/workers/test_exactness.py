"""The same request gives the same tokens bit for bit, whatever runs beside it and wherever it runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from shoal.kernels import native
from shoal.workers.engine.sequence import Sequence, SequenceKey
from shoal.workers.experts.placement import Placement
from shoal.workers.model.sampling import SamplingParams
from tests.workers.engines import GREEDY, Make, make_engine, random_tokens, run, sequence
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


def test_batch_does_not_matter(make: Make, tiny: Path, alone: list[list[int]]) -> None:
    """All requests together give what each gives alone."""
    assert alone == run(make(tiny), *requests())


@pytest.mark.parametrize("batch_tokens", [16, 29])
def test_chunks_do_not_matter(make: Make, tiny: Path, alone: list[list[int]], batch_tokens: int) -> None:
    """Prompts cut into odd chunks and mixed with decodes give the same tokens."""
    assert alone == run(make(tiny, batch_tokens=batch_tokens), *requests())


def test_preemption_does_not_matter(make: Make, tiny: Path, alone: list[list[int]]) -> None:
    """A cache too small for all of them preempts and recomputes, with the same tokens."""
    engine = make(tiny, kv_tokens=112, block_size=8)
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


def test_prefix_hits_do_not_matter(make: Make, tiny: Path, alone: list[list[int]]) -> None:
    """Run again on a warm cache, found prefixes included, the same requests give the same tokens."""
    engine = make(tiny)
    assert alone == run(engine, *requests())
    assert engine.counters.cached_tokens == 0
    assert alone == run(engine, *requests())
    assert engine.counters.cached_tokens >= 16 + 16 + 32 + 48


def test_speculation_does_not_matter(make: Make, tiny: Path, alone: list[list[int]]) -> None:
    """With guesses verified ahead the tokens are the same, and some guesses were right."""
    engine = make(tiny, speculate=4)
    assert alone == run(engine, *requests())
    two_words = SamplingParams(logit_bias={5: 100.0, 6: 100.0})  # repeats itself, so that guesses are made
    expected = run(make(tiny), sequence([1, 2, 3], max_tokens=60, seed=1, sampling=two_words))
    assert expected == run(engine, sequence([1, 2, 3], max_tokens=60, seed=1, sampling=two_words))
    assert 0 < engine.counters.accepted_tokens < engine.counters.drafted_tokens


@pytest.mark.skipif(not native.available(), reason=f"no native kernels here: {native.reason()}")
def test_eight_bit_activations_are_as_exact_among_themselves(make: Make, tiny: Path, alone: list[list[int]]) -> None:
    """Other tokens than fp32 gives, the same ones in every batch."""
    by_itself = [run(make(tiny, int8=True), s)[0] for s in requests()]
    assert by_itself == run(make(tiny, int8=True, batch_tokens=29), *requests())
    assert by_itself != alone


def test_forks_do_not_matter(make: Make, tiny: Path) -> None:
    """Several choices of one request share their prompt's blocks and give what each gives alone."""
    prompt = random_tokens(45, 1000, seed=9)

    def choice(i: int) -> Sequence:
        s = sequence(prompt, max_tokens=10, seed=4, sampling=SEEDED)
        s.key = SequenceKey("n", i)
        return s

    alone = [run(make(tiny), choice(i))[0] for i in range(3)]
    engine = make(tiny)
    assert alone == run(engine, *(choice(i) for i in range(3)))
    assert engine.counters.prompt_tokens == 45 + 1 + 1
    assert len({tuple(tokens) for tokens in alone}) == 3


def test_prompt_logprobs_are_those_of_a_longer_run(tiny: Path) -> None:
    """The log-probability of a prompt token equals that of the same token when it was generated."""
    engine = make_engine(tiny)
    s = sequence(random_tokens(20, 1000, seed=2), max_tokens=6, sampling=SamplingParams(temperature=0.0, logprobs=True))
    engine.submit(s)
    generated = [o.token for _ in range(6) for o in engine.step().outputs]
    again = sequence(s.tokens, name="again", max_tokens=1)
    again.prompt_logprobs = True
    engine.submit(again)
    (output,) = engine.step().outputs
    assert [t.logprob for t in generated if t] == [p.logprob for p in output.prompt[-6:]]
    assert len(output.prompt) == len(s.tokens) - 1


def test_replay_does_not_matter(make: Make, tiny: Path, alone: list[list[int]]) -> None:
    """Prompt plus the tokens already sent, submitted elsewhere, goes on with the same tokens."""
    engine = make(tiny)
    for s, expected in zip(requests(), alone, strict=True):
        replay = sequence(
            s.tokens + expected[:5], name="again", max_tokens=12, seed=s.seed, sampling=s.sampling, start_offset=5
        )
        assert [expected] == run(engine, replay)
