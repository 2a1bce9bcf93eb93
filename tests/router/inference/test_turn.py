"""The reader of a turn: any tokens, in any chunks, give the same events."""

from __future__ import annotations

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


def reader(tokenizer: Tokenizer, stops: tuple[str, ...] = ()) -> TurnReader:
    """For which the server runs python."""
    control = ControlTokens.of(tokenizer.control)
    renderer = Renderer(tokenizer, control)
    return TurnReader(
        tokenizer, control, renderer, stops=stops, call_prefix="c", on_server=lambda recipient: recipient == "python"
    )


def tokens(ids: list[int], begin: int, end: int, last: bool, logprobs: bool = True) -> Tokens:
    """A worker's output of some of the ids."""
    finish = pb.SEQUENCE_FINISH_STOP_TOKEN if last else pb.SEQUENCE_FINISH_UNSPECIFIED
    chosen = tuple(ids[begin:end])
    return Tokens(begin, chosen, tuple(-float(t) for t in chosen) if logprobs else (), finish)


def read(tokenizer: Tokenizer, ids: list[int], cuts: list[int], stops: tuple[str, ...]) -> list[api.ChatResponse]:
    """The events of the ids in chunks that end at the cuts."""
    turn, events, begin = reader(tokenizer, stops), [], 0
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
    whole = read(tokenizer, ids, [], stops)

    assert read(tokenizer, ids, cuts, stops) == whole
    assert read(tokenizer, ids, list(range(len(ids))), stops) == whole
    cursors = [(event.cursor.offset, event.cursor.k) for event in whole]
    assert cursors == sorted(set(cursors))


@settings(max_examples=250)
@given(data=st.data())
def test_what_is_streamed_is_what_is_kept(data: st.DataObject, tokenizer: Tokenizer) -> None:
    """The pieces of each message concatenate to the message that history keeps, by channel and kind."""
    ids = data.draw(any_ids(tokenizer))
    turn = reader(tokenizer)
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
    assert usage.output_tokens == len(ids)
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
