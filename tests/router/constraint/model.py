"""A model of random preferences, sampled under a constraint, and what it said."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jsonschema

from shoal.cluster.checkpoint.presets import PRESETS
from shoal.cluster.checkpoint.tokenizer import tokenizer_json
from shoal.router.constraint.build import build_constraint
from shoal.router.constraint.rules import TurnRules
from shoal.router.harmony.control import ControlTokens
from shoal.router.harmony.parse import Closed, Parser, Repaired
from shoal.router.tokenizer import Tokenizer
from shoal.workers.constraint.compiler import ConstraintCompiler
from shoal.workers.constraint.cursor import Cursor
from shoal.workers.model.token_bytes import read_token_bytes

MOST = 6000


@dataclass(frozen=True)
class Speaker:
    """A vocabulary, as a router and as a worker know it."""

    tokenizer: Tokenizer
    control: ControlTokens
    compiler: ConstraintCompiler
    token_bytes: tuple[bytes, ...]

    @classmethod
    def of(cls, preset: str, directory: Path) -> Speaker:
        """The vocabulary of a preset's checkpoints."""
        path = directory / "tokenizer.json"
        path.write_text(tokenizer_json(PRESETS[preset]), encoding="utf-8")
        tokenizer = Tokenizer.load(directory)
        table = read_token_bytes(path, PRESETS[preset].vocab_size)
        return cls(tokenizer, ControlTokens.of(tokenizer.control), ConstraintCompiler(table), table)

    def begin(self, rules: TurnRules) -> Cursor:
        """A turn under rules."""
        return self.compiler.begin(build_constraint(rules, self.control))

    def say(self, rules: TurnRules, seed: int) -> list[int]:
        """A whole turn. The model prefers to end what it began, else it would talk for ever."""
        chance, cursor = random.Random(seed), self.begin(rules)
        tokens: list[int] = []
        while not cursor.ended:
            assert len(tokens) < MOST, self.tokenizer.decode(tokens[-300:])
            allowed = cursor.allowed()
            ending = [t for t in allowed[-40:].tolist() if not self.token_bytes[t]]
            ending += [t for t in allowed[:256].tolist() if self.token_bytes[t] in (b'"', b"}", b"]")]
            token = chance.choice(ending) if ending and chance.random() < 0.3 else int(chance.choice(allowed))
            assert cursor.advance(token)
            tokens.append(token)
        return tokens

    def read(self, tokens: list[int]) -> list[Closed]:
        """The messages of a turn, which needed no repair."""
        parser = Parser(self.tokenizer, self.control)
        events = [event for token in tokens for event in parser.push(token)] + parser.finish()
        repairs = [event for event in events if isinstance(event, Repaired)]

        assert repairs == []
        return [event for event in events if isinstance(event, Closed)]


def valid(text: str, schema: dict[str, Any]) -> bool:
    """Whether `text` is JSON that the schema describes, as the `jsonschema` package sees it."""
    checker = jsonschema.FormatChecker()
    return jsonschema.Draft202012Validator(schema, format_checker=checker).is_valid(json.loads(text))
