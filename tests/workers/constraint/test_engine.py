"""Constraints in a real engine: alone, in batches, with guesses, preemption and replay."""

from __future__ import annotations

import json
from collections.abc import Sequence as Seq
from pathlib import Path
from typing import Any

import pytest

from shoal.proto.v1 import constraint_pb2 as pb
from shoal.workers.checkpoint import open_checkpoint
from shoal.workers.constraint.compiler import ConstraintCompiler
from shoal.workers.engine.engine import Engine
from shoal.workers.engine.output import Output
from shoal.workers.engine.sequence import Finish, Sequence, StopParams
from shoal.workers.model.sampling import SamplingParams
from shoal.workers.model.token_bytes import read_token_bytes
from tests.workers.constraint.small import anything, choice, constraint, path, regex, written
from tests.workers.engines import GREEDY, Make, make_engine, random_tokens, run, sequence

WARM = SamplingParams(temperature=1.0)
SCHEMA = {
    "type": "object",
    "properties": {"a": {"enum": ["x", "yy"]}, "b": {"type": "array", "items": {"type": "boolean"}, "maxItems": 3}},
    "required": ["a", "b"],
    "additionalProperties": False,
}


class Vocabulary:
    """A checkpoint's tokens and what is made of them here."""

    def __init__(self, model: Path) -> None:
        self.bytes = read_token_bytes(model / "tokenizer.json", open_checkpoint(model).config.vocab_size)
        self.end, self.stop, *_ = (i for i, text in enumerate(self.bytes) if not text)
        self.compiler = ConstraintCompiler(self.bytes)

    def thinking_then_json(self, budget: int) -> pb.Constraint:
        """Free text within a budget, then a value of SCHEMA."""
        return constraint(
            anything(path(self.end, to=1), budget=1, spent=path(self.end, to=1)),
            written(pb.GRAMMAR_KIND_JSON_SCHEMA, json.dumps(SCHEMA), path(self.stop, to=2)),
            choice(),
            budgets=(budget,),
        )

    def sequence(self, message: pb.Constraint, prompt: list[int], generated: Seq[int] = (), **fields: Any) -> Sequence:
        """A sequence under a constraint, after tokens that an earlier attempt generated."""
        before = list(generated)
        made = sequence([*prompt, *before], start_offset=len(before), **fields)
        made.constraint = self.compiler.begin(message, before)
        return made

    def text(self, tokens: list[int]) -> bytes:
        """The bytes of tokens."""
        return b"".join(self.bytes[token] for token in tokens)


@pytest.fixture(scope="module")
def vocabulary(tiny: Path) -> Vocabulary:
    """Of the tiny checkpoint."""
    return Vocabulary(tiny)


@pytest.fixture
def prompts() -> list[list[int]]:
    """Prompts that repeat themselves, so that there is something to guess."""
    return [random_tokens(6, 256, seed) * 3 for seed in range(4)]


def generate(engine: Engine, vocabulary: Vocabulary, prompts: list[list[int]], **fields: Any) -> list[list[int]]:
    """All prompts at once under the same constraint."""
    message = vocabulary.thinking_then_json(budget=9)
    fields = {"max_tokens": 400, "sampling": WARM, **fields}
    sequences = [vocabulary.sequence(message, p, name=f"r{i}", seed=i, **fields) for i, p in enumerate(prompts)]
    return run(engine, *sequences)


def test_every_turn_keeps_its_constraint(
    make: Make, tiny: Path, vocabulary: Vocabulary, prompts: list[list[int]]
) -> None:
    """Random weights think within the budget, answer in JSON of the schema, and end where the constraint ends."""
    for tokens in generate(make(tiny), vocabulary, prompts):
        thought, answer = tokens[: tokens.index(vocabulary.end)], tokens[tokens.index(vocabulary.end) + 1 :]
        value = json.loads(vocabulary.text(answer[:-1]))

        assert len(thought) <= 9
        assert answer[-1] == vocabulary.stop
        assert value["a"] in ("x", "yy")
        assert len(value["b"]) <= 3


@pytest.mark.parametrize("sampling", [GREEDY, WARM], ids=["greedy", "warm"])
def test_speculation_changes_nothing(
    make: Make, tiny: Path, vocabulary: Vocabulary, prompts: list[list[int]], sampling: SamplingParams
) -> None:
    """With guesses verified under the masks of their positions the tokens are the same, and guesses are right."""
    message = constraint(regex("(abcabc|xyz){20}", path(vocabulary.stop, to=1)), choice())

    def generated(engine: Engine) -> list[list[int]]:
        return run(engine, *(
            vocabulary.sequence(message, p, name=f"r{i}", seed=i, max_tokens=150, sampling=sampling)
            for i, p in enumerate(prompts)
        ))  # fmt: skip

    guessing = make(tiny, speculate=4)
    plain, guessed = generated(make(tiny)), generated(guessing)

    assert plain == guessed
    assert guessing.counters.accepted_tokens > 0
    assert all(tokens[-1] == vocabulary.stop for tokens in plain)


def test_batch_and_preemption_change_nothing(
    make: Make, tiny: Path, vocabulary: Vocabulary, prompts: list[list[int]]
) -> None:
    """The same turns alone, together, and with too little memory for all of them."""
    alone = [_alone(tiny, vocabulary, i, p) for i, p in enumerate(prompts)]
    cramped = make(tiny, kv_tokens=160, caching=False)

    assert alone == generate(make(tiny), vocabulary, prompts)
    assert alone == generate(cramped, vocabulary, prompts, max_tokens=140)
    assert cramped.counters.preemptions > 0


def _alone(tiny: Path, vocabulary: Vocabulary, seed: int, prompt: list[int]) -> list[int]:
    message = vocabulary.thinking_then_json(budget=9)
    made = vocabulary.sequence(message, prompt, seed=seed, max_tokens=400, sampling=WARM)
    return run(make_engine(tiny), made)[0]


def test_replay_goes_on_the_same(make: Make, tiny: Path, vocabulary: Vocabulary, prompts: list[list[int]]) -> None:
    """From any offset another engine generates the rest, with the constraint's state rebuilt from the tokens."""
    whole = _alone(tiny, vocabulary, 0, prompts[0])
    message = vocabulary.thinking_then_json(budget=9)

    for cut in range(0, len(whole) - 1, 5):
        again = vocabulary.sequence(message, prompts[0], whole[:cut], seed=0, max_tokens=400, sampling=WARM)
        assert run(make(tiny), again) == [whole]


def test_a_dead_end_ends_the_sequence_with_its_reason(make: Make, tiny: Path, vocabulary: Vocabulary) -> None:
    """A constraint that leaves no token ends its own sequence alone, and says why."""
    stuck = constraint(written(pb.GRAMMAR_KIND_REGEX, "a(b)"), choice())  # complete, and no path leads on
    engine = make(tiny)
    made, other = vocabulary.sequence(stuck, [1, 2, 3], name="stuck"), sequence([1, 2, 3], name="other")
    for each in (made, other):
        engine.submit(each)
    outputs: list[Output] = []
    while engine.has_work:
        outputs += engine.step().outputs
    engine.check_integrity()
    last = [output for output in outputs if output.sequence is made][-1]

    assert Finish.DEAD_END == last.finish
    assert "no token may follow the 2 generated" in last.why
    assert Finish.LENGTH == other.finish


def test_an_end_that_the_constraint_demands_overrules_min_tokens(
    make: Make, tiny: Path, vocabulary: Vocabulary
) -> None:
    """Where nothing but an end token is left it is generated, however few tokens there are."""
    message = constraint(regex("ab", path(vocabulary.stop, to=1)), choice())
    stop = StopParams(max_tokens=50, min_tokens=40, stop_token_ids=frozenset((vocabulary.stop,)))

    made = vocabulary.sequence(message, [1, 2, 3], stop=stop)
    (tokens,) = run(make(tiny), made)

    assert vocabulary.text(tokens) == b"ab"
    assert Finish.STOP_TOKEN == made.finish


def test_log_probabilities_are_of_the_allowed_tokens(make: Make, tiny: Path, vocabulary: Vocabulary) -> None:
    """Only allowed tokens are listed, and together they are certain."""
    message = constraint(regex("[ab]", path(vocabulary.stop, to=1)), choice())
    params = SamplingParams(temperature=1.0, logprobs=True, top_logprobs=5)
    engine = make(tiny)
    engine.submit(vocabulary.sequence(message, [1, 2, 3], sampling=params))
    outputs: list[Output] = []
    while not outputs:
        outputs += engine.step().outputs
    first = outputs[0].token

    assert first is not None
    assert {97, 98} == {token for token, _ in first.top}
    assert sum(2.718281828459045**logprob for _, logprob in first.top) == pytest.approx(1.0)
