"""The parser: total, forgiving, and the same whatever the chunks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.router.harmony.control import ControlTokens
from shoal.router.harmony.parse import Closed, Delta, Event, Opened, Parser, Repaired
from shoal.router.tokenizer import Tokenizer
from tests.router.byte_tokenizer import ids_of

GOLDEN = json.loads((Path(__file__).parents[2] / "oracle" / "harmony_golden.json").read_text())


def read(tokenizer: Tokenizer, ids: list[int]) -> list[Event]:
    """All events of a turn."""
    parser = Parser(tokenizer, ControlTokens.of(tokenizer.control))
    return [event for token in ids for event in parser.push(token)] + parser.finish()


def messages_of(events: list[Event]) -> list[tuple[str, str]]:
    """Channel and text of every message."""
    return [(event.header.channel, event.text) for event in events if isinstance(event, Closed)]


def repairs_of(events: list[Event]) -> list[str]:
    """The codes, in order."""
    return [event.code for event in events if isinstance(event, Repaired)]


@pytest.mark.parametrize("case", GOLDEN["parsed"], ids=lambda case: str(case["name"]))
def test_reads_as_openai_harmony_does(case: dict[str, Any], tokenizer: Tokenizer) -> None:
    """Well-formed output has the same channels, recipients, types and texts, and no repairs."""
    ids: list[int] = []
    for piece in case["pieces"]:
        ids += [tokenizer.control[piece[0]]] if isinstance(piece, list) else tokenizer.encode(piece)
    events = read(tokenizer, ids)
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

    assert found == case["messages"]
    assert repairs_of(events) == []


REPAIRS = [
    ("The answer is 4.", [("final", "The answer is 4.")], ["missing_header", "x"]),
    ("<|message|>4<|return|>", [("final", "4")], ["missing_channel"]),
    ("<|channel|>finale<|message|>4<|return|>", [("final", "4")], ["unknown_channel"]),
    ("<|channel|>analysisfinal<|message|>4<|return|>", [("final", "4")], ["unknown_channel"]),
    ("<|channel|>analysis<|message|>hm<|channel|>final<|message|>4<|return|>",
     [("analysis", "hm"), ("final", "4")], ["missing_end"]),
    ("<|channel|>analysis<|message|>hm<|start|>assistant<|channel|>final<|message|>4<|return|>",
     [("analysis", "hm"), ("final", "4")], ["missing_end"]),
    ("<|channel|>analysis<|message|>hm<|end|>assistant<|channel|>final<|message|>4<|return|>",
     [("analysis", "hm"), ("final", "4")], ["missing_start"]),
    ("<|channel|>analysis<|message|>hm<|end|><|channel|>final<|message|>4<|return|>",
     [("analysis", "hm"), ("final", "4")], ["missing_start"]),
    ("<|channel|>analysis<|message|>hm<|end|>Four it is.",
     [("analysis", "hm"), ("final", "Four it is.")], ["missing_start", "missing_header", "x"]),
    ("<|channel|>final<|message|>4<|constrain|>2<|return|>", [("final", "42")], ["stray_token"]),
    ("<|channel|>final<|channel|>analysis<|message|>hm<|end|>", [("analysis", "hm")], ["malformed_header"]),
    ("<|channel|>final<|return|>", [("final", "")], ["malformed_header"]),
    ("<|channel|>final", [("final", "")], ["truncated_header"]),
    ("<|channel|>commentary json<|message|>{}<|call|>", [("commentary", "{}")], []),
    ("<|channel|>final extra words<|message|>4<|return|>", [("final", "4")], ["malformed_header"]),
    ("<|start|>user<|channel|>final<|message|>me<|end|>", [("final", "me")], ["foreign_author"]),
    ("", [], []),
    ("<|return|>", [("final", "")], ["malformed_header", "missing_channel"]),
]  # fmt: skip


@pytest.mark.parametrize(("written", "expected", "codes"), REPAIRS, ids=[row[0] or "nothing" for row in REPAIRS])
def test_repairs_what_models_get_wrong(
    written: str, expected: list[tuple[str, str]], codes: list[str], tokenizer: Tokenizer
) -> None:
    """Each known malformation keeps its text, lands on the channel that was meant, and is reported."""
    events = read(tokenizer, ids_of(tokenizer, written))

    assert messages_of(events) == expected
    assert repairs_of(events) == [code for code in codes if code != "x"]


def any_tokens() -> st.SearchStrategy[list[int]]:
    """Ids of the byte vocabulary (0 to 255), its nine control tokens (256 to 264), and ids that mean nothing."""
    control = st.integers(256, 264).map(lambda token: [token])
    anything = st.integers(0, 300).map(lambda token: [token])
    words = [b"analysis", b"final", b"commentary", b"assistant", b" to=functions.f", b"json", b"\xe2\x82"]
    chunks = st.lists(st.one_of(control, anything, st.sampled_from(words)), max_size=40)
    return chunks.map(lambda drawn: [token for chunk in drawn for token in chunk])


@settings(max_examples=400)
@given(ids=any_tokens())
def test_any_tokens_are_read(ids: list[int], tokenizer: Tokenizer) -> None:
    """No sequence raises; messages open and close in turn, and the deltas of each concatenate to its text."""
    events = read(tokenizer, ids)

    text: list[str] | None = None
    for event in events:
        match event:
            case Opened():
                assert text is None
                text = []
            case Delta(text=piece):
                assert text is not None
                assert piece != ""
                text.append(piece)
            case Closed():
                assert text is not None
                assert "".join(text) == event.text == tokenizer.decode(event.content_ids)
                text = None
    assert text is None


@given(ids=any_tokens())
def test_no_text_outside_headers_is_lost(ids: list[int], tokenizer: Tokenizer) -> None:
    """The content ids of all messages are a subsequence of what was pushed."""
    kept = [token for event in read(tokenizer, ids) if isinstance(event, Closed) for token in event.content_ids]
    remaining = iter(ids)

    assert all(token in remaining for token in kept)


@given(ids=any_tokens(), cut=st.integers(0, 60))
def test_events_depend_on_the_tokens_so_far_alone(ids: list[int], cut: int, tokenizer: Tokenizer) -> None:
    """What a prefix gives is a prefix of what the whole gives, whatever follows."""
    control = ControlTokens.of(tokenizer.control)
    short, long = Parser(tokenizer, control), Parser(tokenizer, control)
    first = [event for token in ids[:cut] for event in short.push(token)]
    whole = [event for token in ids for event in long.push(token)]

    assert whole[: len(first)] == first
