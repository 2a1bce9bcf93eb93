"""Whatever people write, none of it becomes a control token.

    python -m tests.router.harmony.fuzz 1000000      the long form, with the published vocabulary where it is at hand

Strings with the names of control tokens, with what looks like them, whole and cut into parts, in every place that a
request has for words: the rendered conversation has the control tokens of one in which nobody said anything special.
"""

from __future__ import annotations

import itertools
import random
import string
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shoal.proto.v1 import inference_pb2 as api
from shoal.router.harmony.control import ControlTokens
from shoal.router.harmony.message import ChatMessage
from shoal.router.harmony.namespace import Function
from shoal.router.harmony.preface import AnswerFormat, SystemSettings
from shoal.router.harmony.render import Renderer
from shoal.router.http.chat.messages import read_messages
from shoal.router.inference.conversation import read_messages as read_turn
from shoal.router.tokenizer import Tokenizer
from tests.oracle.o200k import AbsentVocabularyError, tokenizer_directory
from tests.router.byte_tokenizer import CONTROL, write_tokenizer

_LOOK_ALIKES = (
    "<|end|", "|end|>", "<|", "|>", "<\uff5cend\uff5c>", "<|e\u200bnd|>", "<|END|>", "<| end |>", "&lt;|end|&gt;",
    "<s>", "</s>",
    "\\u003c|end|\\u003e", "<|reserved_200013|>", "<|endofprompt|>", "<|im_start|>", "\ufeff<|start|>", "<\u0000|end|>",
    "<|end|>\u202e", "assistant<|channel|>final", "analysis to=functions.x", "\u00ff\u0178", "\U0001f642", "\x00",
    "\x7f", "\r\n", "\u2028", " ",
)  # fmt: skip
_PLAIN = "x"


def text(draw: random.Random) -> str:
    """What somebody may write."""
    parts = []
    for _ in range(draw.randint(1, 5)):
        match draw.randrange(4):
            case 0:
                parts.append(f"<|{draw.choice(CONTROL)}|>")
            case 1:
                parts.append(draw.choice(_LOOK_ALIKES))
            case 2:
                parts.append("".join(draw.choices(string.printable, k=draw.randint(1, 6))))
            case _:
                parts.append(chr(draw.choice([draw.randrange(32, 0xD800), draw.randrange(0xE000, 0x110000)])))
    return "".join(parts)


def cut(draw: random.Random, said: str) -> list[dict[str, str]]:
    """As parts of a message's content, cut anywhere."""
    places = sorted(draw.sample(range(len(said) + 1), min(len(said) + 1, draw.randint(0, 3))))
    bounds = [0, *places, len(said)]
    return [{"type": "text", "text": said[a:b]} for a, b in itertools.pairwise(bounds)]


@dataclass(frozen=True)
class Fuzz:
    """One vocabulary under test."""

    tokenizer: Tokenizer

    @property
    def renderer(self) -> Renderer:
        """Of the vocabulary."""
        return Renderer(self.tokenizer, ControlTokens.of(self.tokenizer.control))

    def controls(self, ids: Any) -> Counter[int]:
        """The control tokens among them."""
        special = set(self.tokenizer.control.values())
        return Counter(i for i in ids if i in special)

    def run(self, count: int, seed: int) -> None:
        """Raises AssertionError with the text that became more than text."""
        draw, renderer = random.Random(seed), self.renderer
        expected = self.controls(self._prompt(renderer, [_PLAIN] * 6, random.Random(0)))
        for number in range(count // 6):
            said = [text(draw) for _ in range(6)]
            for one in said:
                assert not self.controls(self.tokenizer.encode(one)), f"{one!r} is encoded as control tokens"
                assert self.tokenizer.decode(self.tokenizer.encode(one)) == one, f"{one!r} is read as something else"
            if number % 8 == 0:
                assert self.controls(self._prompt(renderer, said, draw)) == expected, f"{said!r} changes the shape"

    def _prompt(self, renderer: Renderer, said: list[str], draw: random.Random) -> list[int]:
        """A conversation with these words in every place that has words: read as HTTP is, then as gRPC is."""
        call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": said[3]}}
        written = [
            {"role": "developer", "content": cut(draw, said[0])},
            {"role": "user", "content": cut(draw, said[1])},
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "c", "content": cut(draw, said[2])},
            {"role": "assistant", "content": said[4]},
            {"role": "user", "content": said[5]},
        ]
        messages, _ = read_messages(written)
        turn: list[ChatMessage] = read_turn(
            [api.Message.FromString(m.SerializeToString()) for m in messages], first_turn=True
        )
        schema = {
            "type": "object",
            "description": said[1],
            "properties": {"p": {"type": "string", "description": said[2]}},
        }
        pieces = renderer.prompt(
            SystemSettings(date="2026-11-25"),
            turn,
            (Function("f", said[0], schema),),
            (AnswerFormat("a", said[3], said[4]),),
        )
        return [i for piece in pieces for i in piece.ids]


def main() -> None:
    """The long form."""
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000
    try:
        directory = tokenizer_directory()
    except AbsentVocabularyError as error:
        print(f"with a vocabulary of bytes: {error}")
        directory = write_tokenizer(Path(tempfile.mkdtemp()))
    Fuzz(Tokenizer.load(directory)).run(count, seed=1)
    print(f"{count} strings, none of them became a control token")


if __name__ == "__main__":
    main()
