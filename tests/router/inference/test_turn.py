"""The reader of a turn: any tokens, in any chunks, give the same events."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.proto.v1 import inference_pb2 as api
from shoal.proto.v1 import worker_pb2 as pb
from shoal.router.fleet.backend import Tokens
from shoal.router.harmony.control import ControlTokens
from shoal.router.harmony.render import Renderer
from shoal.router.inference.turn import TurnReader
from shoal.router.tokenizer import Tokenizer
from tests.router.byte_tokenizer import ids_of

_WORDS = (
    "<|channel|>analysis<|message|>hm<|end|>", "<|start|>assistant", "<|channel|>final<|message|>", "4 é STOP",
    "<|channel|>commentary to=functions.f <|constrain|>json<|message|>{}<|call|>", "<|return|>", "<|end|>", "STO", "P",
    " to=python<|channel|>analysis code<|message|>1<|call|>", "<|channel|>", "<|message|>", "json",
)  # fmt: skip


def reader(tokenizer: Tokenizer, stops: tuple[str, ...] = (), *, parallel: bool = False) -> TurnReader:
    """For which the server runs python."""
    control = ControlTokens.of(tokenizer.control)
    renderer = Renderer(tokenizer, control)
    return TurnReader(
        tokenizer,
        control,
        renderer,
        stops=stops,
        call_prefix="c",
        parallel=parallel,
        on_server=lambda recipient: recipient == "python",
    )


def tokens(ids: list[int], begin: int, end: int, last: bool, logprobs: bool = True) -> Tokens:
    """A worker's output of some of the ids."""
    finish = pb.SEQUENCE_FINISH_STOP_TOKEN if last else pb.SEQUENCE_FINISH_UNSPECIFIED
    chosen = tuple(ids[begin:end])
    return Tokens(begin, chosen, tuple(-float(t) for t in chosen) if logprobs else (), finish)


def read(
    tokenizer: Tokenizer, ids: list[int], cuts: list[int], stops: tuple[str, ...], parallel: bool
) -> list[api.ChatResponse]:
    """The events of the ids in chunks that end at the cuts."""
    turn, events, begin = reader(tokenizer, stops, parallel=parallel), [], 0
    for end in [*sorted(min(cut, len(ids)) for cut in cuts), len(ids)]:
        if turn.finish is None:
            events += turn.read(tokens(ids, begin, end, last=False))
        begin = end
    if turn.finish is None:
        events += turn.read(tokens(ids, len(ids), len(ids), last=True))
    return events


def any_ids(tokenizer: Tokenizer) -> st.SearchStrategy[list[int]]:
    """Pieces of turns and any ids at all."""
    chunks = st.one_of(
        st.sampled_from(_WORDS).map(lambda word: ids_of(tokenizer, word)),
        st.integers(0, 300).map(lambda token: [token]),
    )
    return st.lists(chunks, max_size=14).map(lambda drawn: [token for chunk in drawn for token in chunk])


@settings(max_examples=250)
@given(data=st.data())
def test_chunks_do_not_matter(data: st.DataObject, tokenizer: Tokenizer) -> None:
    """One token at a time, all at once or anything between: the events are equal, cursors and log-probabilities too."""
    ids = data.draw(any_ids(tokenizer))
    cuts = data.draw(st.lists(st.integers(0, 80), max_size=6))
    stops = data.draw(st.sampled_from([(), ("STOP",), ("é", "STOP")]))
    parallel = data.draw(st.booleans())
    whole = read(tokenizer, ids, [], stops, parallel)

    assert read(tokenizer, ids, cuts, stops, parallel) == whole
    assert read(tokenizer, ids, list(range(len(ids))), stops, parallel) == whole
    cursors = [(event.cursor.offset, event.cursor.k) for event in whole]
    assert cursors == sorted(set(cursors))


@settings(max_examples=250)
@given(data=st.data())
def test_what_is_streamed_is_what_is_kept(data: st.DataObject, tokenizer: Tokenizer) -> None:
    """The pieces of each message concatenate to the message that history keeps, by channel and kind."""
    ids = data.draw(any_ids(tokenizer))
    turn = reader(tokenizer, parallel=data.draw(st.booleans()))
    events = turn.read(tokens(ids, 0, len(ids), last=True))
    pieces: dict[int, str] = {}
    for event in events:
        for part, text in (
            (event.reasoning, event.reasoning.text),
            (event.text, event.text.text),
            (event.tool_call, event.tool_call.arguments),
        ):
            if text:
                pieces[part.message] = pieces.get(part.message, "") + text

    assert pieces == {i: message.content for i, message in enumerate(turn.messages) if message.content}
    usage = turn.usage
    waits = turn.finish == api.FINISH_REASON_TOOL_CALL  # what follows the last call is not read
    assert usage.output_tokens == len(ids) or (waits and usage.output_tokens < len(ids))
    assert usage.reasoning_tokens + usage.answer_tokens + usage.commentary_tokens <= usage.output_tokens


@settings(max_examples=150)
@given(data=st.data())
def test_well_formed_turns_are_kept_id_by_id(data: st.DataObject, tokenizer: Tokenizer) -> None:
    """Whatever spelling of a header the model chose, history has exactly the ids that were generated."""
    thoughts = st.sampled_from(["<|channel|>analysis<|message|>hm<|end|>", "<|channel|>commentary<|message|>so<|end|>"])
    ends = st.sampled_from(
        [
            "<|channel|>commentary to=functions.f <|constrain|>json<|message|>{}<|call|>",
            " to=functions.f<|channel|>commentary <|constrain|>json<|message|>{}<|call|>",
            "<|channel|>analysis to=python code<|message|>1<|call|>",
        ]
    )
    written = "<|start|>assistant".join([*data.draw(st.lists(thoughts, max_size=3)), data.draw(ends)])
    ids = ids_of(tokenizer, written)
    turn = reader(tokenizer)
    turn.read(tokens(ids, 0, len(ids), last=True))
    kept = [token for message in turn.messages if message.rendered for token in message.rendered.ids]

    assert kept == [*ids_of(tokenizer, "<|start|>assistant"), *ids]
    first = turn.messages[0].rendered
    assert first is not None
    assert first.first == len(ids_of(tokenizer, "<|start|>assistant"))


CALL_F = "<|channel|>commentary to=functions.f <|constrain|>json<|message|>{}<|call|>"
FURTHER = [
    ("", [True]),
    (f"<|start|>assistant{CALL_F}", [True, True]),
    (
        f"<|start|>assistant{CALL_F}<|start|>assistant to=functions.g<|channel|>commentary<|message|>1<|call|>",
        [True] * 3,
    ),
    ("<|start|>assistant<|channel|>analysis", [True]),
    ("<|start|>assistant<|channel|>final<|message|>Done.<|return|>", [True]),
    ("<|start|>assistant to=python<|channel|>analysis code<|message|>1<|call|>", [True]),
    ("<|start|>functions.f to=assistant<|channel|>commentary<|message|>invented<|end|>", [True]),
    ("<|return|>", [True]),
    ("<|start|>assistant<|message|><|end|>", [True]),
]


@pytest.mark.parametrize(("further", "calls"), FURTHER, ids=[further for further, _ in FURTHER])
def test_what_follows_a_call_is_another_call_or_nothing(further: str, calls: list[bool], tokenizer: Tokenizer) -> None:
    """In parallel every further call counts; the first thing that is none ends the turn and leaves no trace."""
    ids = ids_of(tokenizer, CALL_F + further)
    turn = reader(tokenizer, parallel=True)
    events = turn.read(tokens(ids, 0, len(ids), last=True))
    told = [event.tool_call for event in events if event.WhichOneof("event") == "tool_call"]

    assert [bool(message.recipient) for message in turn.messages] == calls
    assert [call.index for call in told if call.id] == list(range(len(calls)))
    assert len({call.id for call in told if call.id}) == len(calls)
    assert all(event.WhichOneof("event") == "tool_call" for event in events)
    assert turn.finish == api.FINISH_REASON_TOOL_CALL


def test_without_parallel_calls_the_first_one_ends_the_turn(tokenizer: Tokenizer) -> None:
    """Whatever a worker goes on to say, even in the same step."""
    ids = ids_of(tokenizer, f"{CALL_F}<|start|>assistant{CALL_F}")
    turn = reader(tokenizer)
    turn.read(tokens(ids, 0, len(ids), last=False))

    assert turn.finish == api.FINISH_REASON_TOOL_CALL
    assert [message.recipient for message in turn.messages] == ["functions.f"]
    assert turn.usage.output_tokens == len(ids_of(tokenizer, CALL_F))


def test_arguments_have_log_probabilities(tokenizer: Tokenizer) -> None:
    """One per token of the arguments, beside the text that it completes."""
    ids = ids_of(tokenizer, CALL_F)
    turn = reader(tokenizer)
    events = turn.read(tokens(ids, 0, len(ids), last=True))
    told = [t for event in events for t in event.tool_call.logprobs]

    assert [token.id for token in told] == tokenizer.encode("{}")
    assert [token.logprob for token in told] == [-float(t) for t in tokenizer.encode("{}")]


def test_no_more_input_is_cached_than_there_is(tokenizer: Tokenizer) -> None:
    """A later round finds what was generated in the cache too; that is output, and counted once."""
    ids = ids_of(tokenizer, " to=python<|channel|>analysis code<|message|>1<|call|>")
    turn = reader(tokenizer)
    turn.usage.input_tokens = 20
    turn.read(replace(tokens(ids, 0, len(ids), last=True), cached_tokens=16))
    turn.answered("42", failed=False)
    answered = ids_of(
        tokenizer, "<|start|>python to=assistant<|channel|>analysis<|message|>42<|end|><|start|>assistant"
    )
    final = ids_of(tokenizer, "<|channel|>final<|message|>42<|return|>")
    turn.read(replace(tokens(final, 0, len(final), last=True), cached_tokens=20 + len(ids)))

    assert turn.usage.cached_tokens == 16
    assert turn.usage.input_tokens == 20 + len(answered)
    assert turn.usage.output_tokens == len(ids) + len(final)
