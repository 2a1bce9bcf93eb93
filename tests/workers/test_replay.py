"""A sequence cut at any token and submitted elsewhere goes on bit by bit as the undisturbed one."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.proto.v1.constraint_pb2 import GRAMMAR_KIND_JSON_SCHEMA, Constraint
from shoal.workers.constraint.compiler import ConstraintCompiler
from shoal.workers.engine.engine import Engine
from shoal.workers.engine.output import Output
from shoal.workers.engine.sequence import Finish, Sequence, SequenceKey, StopParams
from shoal.workers.model.sampling import Sampled, SamplingParams
from shoal.workers.model.token_bytes import read_token_bytes
from tests.workers.constraint.small import choice, constraint, path, written
from tests.workers.engines import make_engine, random_tokens

SAMPLINGS = (
    SamplingParams(temperature=0.0),
    SamplingParams(temperature=0.0, logprobs=True, top_logprobs=3),
    SamplingParams(temperature=1.0, logprobs=True, top_logprobs=2),
    SamplingParams(temperature=0.8, top_p=0.9, top_k=60, min_p=0.02),
    SamplingParams(repetition_penalty=1.3, presence_penalty=0.4, frequency_penalty=0.3, logprobs=True),
    SamplingParams(logit_bias={5: 100.0, 6: 100.0}),  # two words, so that loops, stop texts and good guesses happen
)
STOPS = (
    StopParams(24),
    StopParams(24, min_tokens=15, stop_token_ids=frozenset(random_tokens(200, 1000, seed=7))),
    StopParams(24, stop_bytes=(b"\x05\x06\x05\x05", b"\x06\x06\x06")),
    StopParams(24, min_tokens=9, stop_bytes=(b"\x05\x06",)),
    StopParams(24, loop_limit=5),
    StopParams(24, loop_limit=4, end_loops=False),
)
_PROPERTIES = '{"a": {"type": "integer"}, "b": {"enum": ["x", "yy"]}}'
SCHEMA = f'{{"type": "object", "properties": {_PROPERTIES}, "required": ["a", "b"]}}'

End = tuple[list[tuple[int, Sampled | None, bool]], Finish | None]


@dataclass(frozen=True)
class Machine:
    """Two engines, one with guesses or overlapping steps and one without, and what compiles constraints for both."""

    first: Engine
    second: Engine
    compiler: ConstraintCompiler
    json: Constraint

    def make(self, tokens: list[int], start: int, kind: int, stop: int, choice_: int, held: bool) -> Sequence:
        """A sequence that `start` tokens were generated of."""
        made = Sequence(SequenceKey("r", choice_), 0, tokens, start, kind * 2**60 + 1, SAMPLINGS[kind], STOPS[stop])
        if held:
            made.constraint = self.compiler.begin(self.json, tokens[len(tokens) - start :])
        return made


@pytest.fixture(scope="module", params=["host", "device"])
def machine(request: pytest.FixtureRequest, tiny: Path) -> Machine:
    """Over the tiny checkpoint, with its own tokenizer's bytes for constraints; tokens chosen here or there."""
    table = read_token_bytes(tiny / "tokenizer.json", 1024)
    message = constraint(written(GRAMMAR_KIND_JSON_SCHEMA, SCHEMA, path(table.index(b""), to=1)), choice())
    faster = {"speculate": 3} if request.param == "host" else {"overlap": True, "graphs": True}
    first, second = (make_engine(tiny, sampler=request.param, **options) for options in (faster, {}))
    return Machine(first, second, ConstraintCompiler(table), message)


def outcome(engine: Engine, sequence: Sequence) -> End:
    """Every token with its offset and all that is told beside it, and why it ended."""
    outputs: list[Output] = []
    engine.submit(sequence)
    while engine.has_work:
        outputs += engine.step().outputs
    engine.check_integrity()
    return [(output.offset, output.token, output.looping) for output in outputs if output.token], sequence.finish


@settings(max_examples=60)
@given(st.data())
def test_any_cut_of_any_request_goes_on_the_same(machine: Machine, data: st.DataObject) -> None:
    """Penalties, limits, stop texts over the cut, loops, constraint, log-probabilities, choices and guesses included;
    tokens that were sent already are not sent again."""
    kind, stop, choice_ = (data.draw(st.integers(0, most)) for most in (len(SAMPLINGS) - 1, len(STOPS) - 1, 2))
    held = data.draw(st.booleans())
    prompt = random_tokens(data.draw(st.integers(1, 40)), 1000, seed=data.draw(st.integers(0, 3)))
    whole, finish = outcome(machine.second, machine.make(list(prompt), 0, kind, stop, choice_, held))
    ids = [token.id for _, token, _ in whole if token]
    cut = data.draw(st.integers(0, len(ids) - 1))
    elsewhere = machine.first if data.draw(st.booleans()) else machine.second
    replay = machine.make([*prompt, *ids[:cut]], cut, kind, stop, choice_, held)

    assert (whole[cut:], finish) == outcome(elsewhere, replay)
