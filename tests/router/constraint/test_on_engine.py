"""A whole turn through a real engine: random weights, real masks, and a turn as OpenAI's clients need it."""

from __future__ import annotations

from pathlib import Path

import pytest

from shoal.cluster.checkpoint.make import make_checkpoint
from shoal.router.constraint.build import build_constraint
from shoal.router.constraint.rules import Language, ToolChoice, ToolRule, TurnRules
from shoal.router.harmony.control import ControlTokens
from shoal.router.tokenizer import Tokenizer
from shoal.workers.constraint.compiler import ConstraintCompiler
from shoal.workers.engine.sequence import StopParams
from shoal.workers.model.sampling import SamplingParams
from shoal.workers.model.token_bytes import read_token_bytes
from tests.router.constraint.model import Speaker, valid
from tests.router.constraint.schemas import Schema
from tests.workers.engines import make_engine, run, sequence

ARGUMENTS: Schema = {"type": "object", "properties": {"unit": {"enum": ["C", "F"]}, "days": {"type": "integer",
    "minimum": 1, "maximum": 14}}, "required": ["unit", "days"], "additionalProperties": False}  # fmt: skip
ANSWER: Schema = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"],
    "additionalProperties": False}  # fmt: skip
TOOLS = (ToolRule("functions.forecast", Language.json_schema(ARGUMENTS)),)


@pytest.mark.parametrize("choice", ["none", "required"])
def test_turns_of_random_weights_are_as_demanded(tmp_path: Path, choice: ToolChoice) -> None:
    """Tools, an answer's schema and a budget together, through the engine, the same with guesses and without."""
    model = make_checkpoint(tmp_path / "model", "tiny", seed=5)
    tokenizer = Tokenizer.load(model)
    control = ControlTokens.of(tokenizer.control)
    table = read_token_bytes(model / "tokenizer.json", tokenizer.size)
    speaker = Speaker(tokenizer, control, ConstraintCompiler(table), table)
    rules = TurnRules(tools=TOOLS, tool_choice=choice, answer=Language.json_schema(ANSWER), reasoning_budget=12,
                      preambles=False)  # fmt: skip
    message = build_constraint(rules, control)

    turns = []
    for speculate in (0, 4):
        made = []
        for seed in range(3):
            prompt = tokenizer.encode(f"question {seed} question {seed}")
            each = sequence(prompt, name=f"r{seed}", seed=seed, sampling=SamplingParams(temperature=1.0),
                            stop=StopParams(max_tokens=600, stop_token_ids=frozenset(control.stops)))  # fmt: skip
            each.constraint = speaker.compiler.begin(message)
            made.append(each)
        turns.append(run(make_engine(model, speculate=speculate), *made))

    assert turns[0] == turns[1]
    for tokens in turns[0]:
        *thoughts, last = speaker.read(tokens)
        assert all(m.header.channel == "analysis" for m in thoughts)
        assert sum(len(m.content_ids) for m in thoughts) <= 12
        assert valid(last.text, ARGUMENTS if choice == "required" else ANSWER)
        assert last.header.recipient == ("functions.forecast" if choice == "required" else "")
