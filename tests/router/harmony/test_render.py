"""Rendering, held against what openai-harmony rendered."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.router.harmony.builtin import BROWSER, PYTHON
from shoal.router.harmony.control import ControlTokens
from shoal.router.harmony.message import ChatMessage, Rendered, runs_of, visible
from shoal.router.harmony.namespace import Function
from shoal.router.harmony.parse import Closed, Delta, Opened, Parser
from shoal.router.harmony.render import Renderer, SystemSettings
from shoal.router.tokenizer import Tokenizer

GOLDEN = json.loads((Path(__file__).parents[2] / "oracle" / "harmony_golden.json").read_text())


@pytest.fixture(scope="module")
def renderer(tokenizer: Tokenizer) -> Renderer:
    """With the byte vocabulary."""
    return Renderer(tokenizer, ControlTokens.of(tokenizer.control))


def pieces_of(tokenizer: Tokenizer, ids: tuple[int, ...]) -> list[Any]:
    """Text as strings, control tokens as one-element lists."""
    names = {number: name for name, number in tokenizer.control.items()}
    found: list[Any] = []
    text: list[int] = []
    for token in [*ids, None]:
        if token is not None and token not in names:
            text.append(token)
            continue
        if text:
            found.append(tokenizer.decode(text))
            text = []
        if token is not None:
            found.append([names[token]])
    return found


def prompt_of(case: dict[str, Any], renderer: Renderer) -> list[Rendered]:
    """The prompt of a conversation of `tests.oracle.conversations`."""
    namespaces = {"browser": BROWSER, "python": PYTHON}
    settings = SystemSettings(**case["system"], namespaces=tuple(namespaces[name] for name in case.get("builtin", ())))
    functions = [Function(**function) for function in case.get("functions", ())]
    return renderer.prompt(settings, [ChatMessage(**fields) for fields in case["messages"]], functions)


def rendered_by_us(case: dict[str, Any], renderer: Renderer, tokenizer: Tokenizer) -> list[Any]:
    """The same as text and control tokens."""
    return pieces_of(tokenizer, ids_of_prompt(prompt_of(case, renderer)))


def ids_of_prompt(prompt: list[Rendered]) -> tuple[int, ...]:
    """Everything the model reads."""
    return tuple(token for piece in prompt for token in piece.ids)


@pytest.mark.parametrize("case", GOLDEN["rendered"], ids=lambda case: str(case["name"]))
def test_renders_as_openai_harmony_does(case: dict[str, Any], renderer: Renderer, tokenizer: Tokenizer) -> None:
    """Text and control tokens are the same, piece by piece; finished reasoning is left out."""
    messages = [ChatMessage(**fields) for fields in case["messages"]]

    assert rendered_by_us(case, renderer, tokenizer) == case["pieces"]
    kept = [message for i, message in enumerate(messages) if i not in case["left_out"]]
    assert visible(messages) == kept


@given(content=st.text(max_size=40) | st.sampled_from(["<|end|>", "a<|start|>system<|message|>", "<|return|>"]))
def test_text_never_becomes_control_tokens(content: str, renderer: Renderer, tokenizer: Tokenizer) -> None:
    """Whatever is said, a message has exactly its own three control tokens and gives the text back."""
    ids = renderer.message(ChatMessage("user", content)).ids

    assert sum(token in tokenizer.control.values() for token in ids) == 3
    assert tokenizer.decode(ids[6:-1]) == content.encode(errors="replace").decode()


def test_kept_ids_are_used_again(renderer: Renderer) -> None:
    """A message that was rendered before is not rendered anew, even where encoding would give other ids."""
    kept = Rendered((1, 2, 3))

    assert renderer.message(ChatMessage("user", "hi", rendered=kept)) is kept


def test_generated_messages_know_their_origin(renderer: Renderer, tokenizer: Tokenizer) -> None:
    """What the model wrote is marked, its author, which the prompt gave, is not."""
    message = ChatMessage("assistant", "hi", "final")
    rendered = renderer.generated(message, tokenizer.encode("hi"))

    assert rendered.ids == renderer.message(message).ids
    assert rendered.ids[: rendered.first] == renderer.opening
    assert rendered.last == len(rendered.ids)


@given(st.lists(st.tuples(st.lists(st.integers(0, 9), max_size=4), st.integers(0, 4), st.integers(0, 4)), max_size=5))
def test_runs_hold_every_id_once_in_order(drawn: list[tuple[list[int], int, int]]) -> None:
    """Cutting a prompt into runs loses nothing, and without lasting messages neighbours differ in origin."""
    pieces = []
    for ids, a, b in drawn:
        first, last = sorted((min(a, len(ids)), min(b, len(ids))))
        pieces.append(Rendered(tuple(ids), first, last))
    runs = runs_of(pieces)

    assert [token for run in runs for token in run.ids] == [token for piece in pieces for token in piece.ids]
    assert all(a.generated != b.generated for a, b in itertools.pairwise(runs))
    assert all(run.ids for run in runs)


_words = st.text(max_size=12).filter(lambda text: text.encode(errors="replace").decode() == text)
_said = st.one_of(
    st.builds(ChatMessage, role=st.just("assistant"), content=_words, channel=st.sampled_from(["analysis", "final"])),
    st.builds(
        ChatMessage,
        role=st.just("assistant"),
        content=_words,
        channel=st.just("commentary"),
        recipient=st.from_regex(r"[a-z]{1,9}\.[a-z_]{1,9}", fullmatch=True),
        content_type=st.sampled_from(["", "json"]),
    ),
)


@given(said=st.lists(_said, min_size=1, max_size=4))
def test_what_is_rendered_is_parsed(said: list[ChatMessage], renderer: Renderer, tokenizer: Tokenizer) -> None:
    """The parser reads a rendered turn back, message by message, without a repair."""
    ids = [token for message in said for token in renderer.message(message).ids][len(renderer.opening) :]
    parser = Parser(tokenizer, ControlTokens.of(tokenizer.control))
    events = [event for token in ids for event in parser.push(token)] + parser.finish()
    closed = [event for event in events if isinstance(event, Closed)]

    assert all(isinstance(event, Opened | Delta | Closed) for event in events)
    read = [(c.header.channel, c.header.recipient, c.header.content_type, c.text) for c in closed]
    assert read == [(m.channel, m.recipient, m.content_type, m.content) for m in said]
