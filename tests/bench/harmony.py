"""Rendering and parsing Harmony, beside openai-harmony on the same conversations and the same tokens.

python -m tests.bench.harmony      writes results/harmony.json; the vocabulary is that of `tests.oracle.o200k`
"""

from __future__ import annotations

import os
import random
import statistics
from collections.abc import Callable
from typing import Any

import openai_harmony

from shoal.proto.v1 import worker_pb2 as pb
from shoal.router.fleet.backend import Tokens
from shoal.router.harmony.control import ControlTokens
from shoal.router.harmony.message import ChatMessage
from shoal.router.harmony.namespace import Function
from shoal.router.harmony.parse import Parser
from shoal.router.harmony.preface import SystemSettings
from shoal.router.harmony.render import Renderer
from shoal.router.inference.turn import TurnReader
from shoal.router.tokenizer import Tokenizer
from tests.bench import constraint
from tests.bench.record import Row, paired, seconds, write
from tests.oracle.conversations import random_conversation
from tests.oracle.harmony import Oracle
from tests.oracle.o200k import VARIABLE, tokenizer_directory, vocabulary_directory

ROUNDS = 15
GOAL = 1.0
"""At least as fast as openai-harmony, which is compiled."""
TURN = "<|channel|>analysis<|message|>{thought}<|end|><|start|>assistant<|channel|>final<|message|>{answer}<|return|>"
PEER = "openai-harmony"


def main() -> None:
    """Measure and write the record."""
    os.environ[VARIABLE] = str(vocabulary_directory())
    oracle, tokenizer = Oracle(), Tokenizer.load(tokenizer_directory())
    control = ControlTokens.of(tokenizer.control)
    rows = [*parse_rows(oracle, tokenizer, control), *render_rows(oracle, tokenizer, control), *constraint.rows()]
    write("harmony", rows, notes=["tokens per second, larger is better, unless the unit says otherwise"])


def parse_rows(oracle: Oracle, tokenizer: Tokenizer, control: ControlTokens) -> list[Row]:
    """A turn of about two thousand tokens, token by token as it streams."""
    text = "The quick brown fox jumps over 17 lazy dogs; 素早い狐。 \n" * 60
    ids = oracle.encoding.encode(TURN.format(thought=text, answer=text), allowed_special="all")

    def ours() -> None:
        parser = Parser(tokenizer, control)
        for token in ids:
            parser.push(token)
        parser.finish()

    def theirs() -> None:
        parser = openai_harmony.StreamableParser(oracle.encoding, openai_harmony.Role.ASSISTANT)
        for token in ids:
            parser.process(token)
            _ = parser.last_content_delta
        parser.process_eos()

    renderer = Renderer(tokenizer, control)

    def events() -> None:
        reader = TurnReader(tokenizer, control, renderer, stops=("never said",), call_prefix="c")
        for i, token in enumerate(ids):
            reader.read(Tokens(i, (token,), (), pb.SEQUENCE_FINISH_UNSPECIFIED))

    told = statistics.median(seconds(events) for _ in range(ROUNDS)) / len(ids) * 1e6
    return [
        _compared("parse, token by token", len(ids), ours, theirs),
        Row("events of a turn with a stop text", round(told, 2), "us/token"),
    ]


def render_rows(oracle: Oracle, tokenizer: Tokenizer, control: ControlTokens) -> list[Row]:
    """Whole prompts: each for the first time, and again as a session renders it, with kept ids."""
    conversations = [random_conversation(random.Random(seed)) for seed in range(40)]
    tokens = sum(len(oracle.prompt_ids(conversation)) for conversation in conversations)
    read = [_of(conversation) for conversation in conversations]
    warm = Renderer(tokenizer, control)

    def ours() -> None:
        renderer = Renderer(tokenizer, control)
        for settings, messages, functions in read:
            renderer.prompt(settings, messages, functions)

    def again() -> None:
        for settings, messages, functions in read:
            warm.prompt(settings, messages, functions)

    def theirs() -> None:
        for conversation in conversations:
            oracle.prompt_ids(conversation)

    return [
        _compared("render, nothing seen before", tokens, ours, theirs),
        _compared("render, instructions and functions seen before", tokens, again, theirs),
    ]


def _of(conversation: dict[str, Any]) -> tuple[SystemSettings, list[ChatMessage], list[Function]]:
    messages = [ChatMessage(**fields) for fields in conversation["messages"]]
    functions = [Function(**function) for function in conversation["functions"]]
    return SystemSettings(**conversation["system"]), messages, functions


def _compared(case: str, tokens: int, ours: Callable[[], None], theirs: Callable[[], None]) -> Row:
    """Both in turn, so that they see the same machine."""
    for work in (ours, theirs):
        work()
    runs = [(seconds(ours), seconds(theirs)) for _ in range(ROUNDS)]
    return paired(case, "tokens/s", [tokens / a for a, _ in runs], PEER, [tokens / b for _, b in runs], GOAL)


if __name__ == "__main__":
    main()
