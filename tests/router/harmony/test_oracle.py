"""Random conversations beside openai-harmony itself, with the vocabulary that `make setup` brings."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.router.harmony.builtin import BROWSER, PYTHON
from shoal.router.harmony.control import ControlTokens
from shoal.router.harmony.message import ChatMessage, visible
from shoal.router.harmony.namespace import Function, tools_section
from shoal.router.harmony.parse import Closed, Parser, Repaired
from shoal.router.harmony.preface import SystemSettings
from shoal.router.harmony.render import Renderer
from shoal.router.harmony.typescript import type_of
from shoal.router.tokenizer import Tokenizer
from tests.oracle.conversations import random_conversation, random_output
from tests.oracle.harmony import Oracle
from tests.oracle.o200k import CLIENTS, VARIABLE, tokenizer_directory, vocabulary_directory
from tests.router.harmony.test_render import ids_of_prompt, pieces_of, prompt_of, rendered_by_us


@pytest.fixture(scope="module")
def oracle() -> Iterator[Oracle]:
    """openai-harmony with its vocabulary."""
    if not CLIENTS.exists() and VARIABLE not in os.environ:
        pytest.skip("openai-harmony's vocabulary comes with `make setup`; the golden file is compared alone")
    directory = vocabulary_directory()
    before = os.environ.get(VARIABLE)
    os.environ[VARIABLE] = str(directory)
    yield Oracle()
    if before is None:
        del os.environ[VARIABLE]
    else:
        os.environ[VARIABLE] = before


@pytest.fixture(scope="module")
def renderer(tokenizer: Tokenizer) -> Renderer:
    """With the byte vocabulary."""
    return Renderer(tokenizer, ControlTokens.of(tokenizer.control))


@settings(max_examples=200)
@given(rng=st.randoms(use_true_random=False), spoken=st.lists(st.text(max_size=30), max_size=5))
def test_conversations_render_alike(
    rng: random.Random, spoken: list[str], oracle: Oracle, renderer: Renderer, tokenizer: Tokenizer
) -> None:
    """Functions, schemas, tools of the model, all channels and any Unicode: text and control tokens are the same."""
    conversation = random_conversation(rng)
    for message, text in zip(conversation["messages"], spoken, strict=False):
        if message["role"] != "developer":
            message["content"] = text

    assert rendered_by_us(conversation, renderer, tokenizer) == oracle.rendered(conversation)
    messages = [ChatMessage(**fields) for fields in conversation["messages"]]
    kept = [message for i, message in enumerate(messages) if i not in conversation["left_out"]]
    assert visible(messages) == kept


@pytest.fixture(scope="module")
def published(oracle: Oracle) -> Tokenizer:
    """The vocabulary of the published checkpoints."""
    del oracle  # skips where the environment of clients is not here
    return Tokenizer.load(tokenizer_directory())


@settings(max_examples=100)
@given(rng=st.randoms(use_true_random=False), spoken=st.lists(st.text(max_size=30), max_size=5))
def test_the_ids_are_those_the_model_was_trained_on(
    rng: random.Random, spoken: list[str], oracle: Oracle, published: Tokenizer
) -> None:
    """With the published vocabulary a prompt has openai-harmony's ids, one by one; the model reads nothing else."""
    conversation = random_conversation(rng)
    for message, text in zip(conversation["messages"], spoken, strict=False):
        if message["role"] != "developer":
            message["content"] = text
    renderer = Renderer(published, ControlTokens.of(published.control))

    assert list(ids_of_prompt(prompt_of(conversation, renderer))) == oracle.prompt_ids(conversation)


@settings(max_examples=200)
@given(rng=st.randoms(use_true_random=False))
def test_turns_parse_alike(rng: random.Random, oracle: Oracle, tokenizer: Tokenizer) -> None:
    """Well-formed turns, the recipient in either place, give the same messages and need no repair."""
    pieces, expected = oracle.parsed(random_output(rng))
    ids: list[int] = []
    for piece in pieces:
        ids += [tokenizer.control[piece[0]]] if isinstance(piece, list) else tokenizer.encode(piece)
    parser = Parser(tokenizer, ControlTokens.of(tokenizer.control))
    events = [event for token in ids for event in parser.push(token)] + parser.finish()

    assert not [event for event in events if isinstance(event, Repaired)]
    found = [
        {
            "channel": event.header.channel,
            "recipient": event.header.recipient,
            "content_type": event.header.content_type,
            "content": event.text,
        }
        for event in events
        if isinstance(event, Closed)
    ]
    assert found == expected


def test_the_models_own_tools_are_told_in_its_words(oracle: Oracle, tokenizer: Tokenizer, renderer: Renderer) -> None:
    """The browser and python sections of the system message are openai-harmony's, to the letter."""
    case: dict[str, Any] = {"system": {}, "builtin": ["browser", "python"], "messages": [], "left_out": []}
    (system, *_) = [piece for piece in oracle.rendered(case) if isinstance(piece, str) and "# Tools" in piece]

    assert tools_section([PYTHON, BROWSER]) in system
    ids = renderer.system(SystemSettings(namespaces=(BROWSER, PYTHON))).ids
    assert system in pieces_of(tokenizer, ids)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
)
_KEYS = ("type", "properties", "items", "oneOf", "enum", "default", "description", "required", "title", "examples", "x")


@given(schema=st.dictionaries(st.sampled_from(_KEYS), _JSON | st.dictionaries(st.sampled_from(_KEYS), _JSON)))
def test_any_json_has_a_type(schema: dict[str, Any]) -> None:
    """Whatever is passed as a schema is described somehow."""
    assert isinstance(type_of(schema), str)
    assert Function("f", "d", schema).text().endswith(" => any;\n")
