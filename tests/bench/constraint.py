"""What constrained generation costs: per token and per batch, over a vocabulary of the published size.

`rows()` belongs to `make bench-harmony`. The vocabulary has the published ids and made-up syllables; the model is
random logits, so texts are unlike a trained model's but every mask is real.
"""

from __future__ import annotations

import json
import random
import statistics
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from shoal.proto.v1 import constraint_pb2 as pb
from shoal.router.constraint.build import build_constraint
from shoal.router.constraint.rules import Language, ToolRule, TurnRules
from shoal.workers.constraint.ahead import Ahead
from shoal.workers.constraint.cursor import Cursor
from shoal.workers.model.sampling import SamplingParams, sample
from tests.bench.record import Row, seconds
from tests.router.constraint.model import Speaker

SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 40},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "tags": {"type": "array", "items": {"enum": ["a", "b", "c"]}, "maxItems": 4},
        "next": {"anyOf": [{"type": "null"}, {"$ref": "#/$defs/note"}]},
    },
    "required": ["name", "age", "tags", "next"],
    "additionalProperties": False,
    "$defs": {"note": {"type": "object", "properties": {"text": {"type": "string"}}, "required": ["text"]}},
}
MICRO = 1e6


def rows(turns: int = 12) -> list[Row]:
    """About half a minute. Microseconds unless the unit says otherwise; lower is better."""
    with tempfile.TemporaryDirectory() as folder:
        speaker = Speaker.of("20b", Path(folder))
    warm = seconds(speaker.compiler.warm_up)
    tools = tuple(ToolRule(f"functions.tool_{i}", Language.json_schema(SCHEMA)) for i in range(20))
    rules = TurnRules(tools=tools, answer=Language.json_schema(SCHEMA), reasoning_budget=40)
    message = build_constraint(rules, speaker.control)
    cold, cached = seconds(lambda: speaker.compiler.begin(message)), seconds(lambda: speaker.compiler.begin(message))
    said = [speaker.say(rules, seed) for seed in range(turns)]
    masks, steps = _per_token(speaker, message, said)
    made = [
        Row("vocabulary of 201,088 tokens, once per worker", round(warm * 1e3, 1), "ms"),
        Row("constraint of 20 tools and an answer, first time", round(cold * 1e3, 2), "ms"),
        Row("the same constraint again", round(cached * 1e3, 3), "ms"),
        Row("mask per token, median", round(statistics.median(masks), 1), "us"),
        Row("mask per token, mean", round(statistics.mean(masks), 1), "us"),
        Row("mask per token, 99th percentile", round(float(np.percentile(masks, 99)), 1), "us"),
        Row("advance per token, median", round(statistics.median(steps), 1), "us"),
    ]
    made += [_per_batch(speaker, message, said, batch) for batch in (1, 8, 32)]
    return made + _sampling(speaker)


def _per_token(speaker: Speaker, message: pb.Constraint, said: list[list[int]]) -> tuple[list[float], list[float]]:
    """Microseconds of finding the allowed tokens, and of taking one."""
    masks, steps = [], []
    for tokens in said:
        cursor = speaker.compiler.begin(message)
        for token in tokens:
            masks.append(seconds(cursor.allowed) * MICRO)
            steps.append(seconds(lambda token=token, cursor=cursor: cursor.advance(token)) * MICRO)  # type: ignore[misc]  # mypy cannot type a default
    return masks, steps


def _per_batch(speaker: Speaker, message: pb.Constraint, said: list[list[int]], batch: int) -> Row:
    """The masks of a whole batch, each sequence somewhere in its turn, as the thread beside the model finds them."""
    ahead, chance = Ahead(), random.Random(batch)

    def somewhere() -> Cursor:
        tokens = chance.choice(said)
        return speaker.compiler.begin(message, tokens[: chance.randrange(len(tokens))])

    def once() -> float:
        cursors = [somewhere() for _ in range(batch)]

        def find() -> None:
            with ahead.finding(cursors):
                pass

        return seconds(find) * MICRO

    return Row(f"masks of a batch of {batch}", round(statistics.median(once() for _ in range(15)), 1), "us")


def _sampling(speaker: Speaker) -> list[Row]:
    """Choosing a token from 201,088 logits, free and under masks that leave much or little."""
    row = np.random.default_rng(0).normal(size=len(speaker.token_bytes)).astype(np.float32)
    params = SamplingParams(temperature=1.0)
    text = speaker.begin(TurnRules())
    for token in (speaker.control.channel, *speaker.tokenizer.encode("final"), speaker.control.message):
        text.advance(token)
    barred, little = text.barred(), np.arange(0, 2000, 7, dtype=np.int64)
    assert barred is not None, "free text bars few tokens"
    cases: dict[str, dict[str, Any]] = {
        "anything": {},
        "free text": {"masked": barred},
        f"{len(little)} tokens": {"allowed": little},
    }
    made = []
    for name, how in cases.items():
        times = [seconds(lambda how=how: sample(row, params, 0.5, **how)) * MICRO for _ in range(45)]  # type: ignore[misc]  # as above
        made.append(Row(f"sampling where {name} may follow", round(statistics.median(times), 1), "us"))
    return made


if __name__ == "__main__":
    for each in rows():
        print(json.dumps({"case": each.case, "value": each.value, "unit": each.unit}))
