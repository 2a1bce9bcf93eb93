"""When a sequence ends."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from shoal.workers.engine.sequence import Finish, Sequence, StopParams
from shoal.workers.engine.stopping import finish_after, replay_tail
from tests.workers.engines import sequence

BYTES = tuple(bytes([i]) for i in range(256))


def feed(stop: StopParams, generated: list[int], start_offset: int = 0) -> tuple[int, Finish | None]:
    """Generate the given tokens; how many it took to end, and why."""
    s: Sequence = sequence([1, *generated[:start_offset]], stop=stop, start_offset=start_offset)
    replay_tail(s, BYTES)
    for token in generated[start_offset:]:
        s.tokens.append(token)
        finish, _ = finish_after(s, 10_000, BYTES)
        if finish:
            return s.num_generated, finish
    return s.num_generated, None


def test_stop_token_ends_the_sequence() -> None:
    assert feed(StopParams(100, stop_token_ids=frozenset([9])), [1, 2, 9, 3]) == (3, Finish.STOP_TOKEN)


def test_stop_tokens_wait_for_min_tokens() -> None:
    """Before `min_tokens` a stop token does not end anything."""
    stop = StopParams(100, min_tokens=4, stop_token_ids=frozenset([9]))
    assert feed(stop, [9, 9, 1, 2, 9]) == (5, Finish.STOP_TOKEN)


def test_length_counts_earlier_attempts() -> None:
    """A replay has the rest of the budget, not a new one."""
    assert feed(StopParams(6), [5] * 10, start_offset=4) == (6, Finish.LENGTH)


def test_loops_are_noticed() -> None:
    """One pattern, `loop_limit` times over."""
    assert feed(StopParams(100, loop_limit=3), [7, 8, 1, 2, 1, 2, 1, 2, 1]) == (8, Finish.LOOP)


@given(st.lists(st.integers(0, 1), min_size=1, max_size=40), st.integers(0, 20), st.integers(1, 4))
def test_a_loop_is_what_it_is_said_to_be(generated: list[int], given_tokens: int, limit: int) -> None:
    """The generated tokens end with one pattern, `limit` times over; the prompt does not count."""
    s = sequence(
        [0] * given_tokens + [1, *generated], start_offset=len(generated), stop=StopParams(100, loop_limit=limit)
    )
    ends = (generated[-n:] * limit for n in range(1, len(generated) // limit + 1))
    assert any(generated[-len(end) :] == end for end in ends) == finish_after(s, 10_000, BYTES)[1]


def test_loops_can_be_reported_without_ending() -> None:
    """With `end_loops` off the sequence goes on and every looping token says so."""
    s = sequence([1, 5, 5, 5], start_offset=3, stop=StopParams(100, loop_limit=3, end_loops=False))
    assert finish_after(s, 10_000, BYTES) == (None, True)


@given(st.binary(max_size=40), st.lists(st.binary(min_size=1, max_size=4), min_size=1, max_size=3), st.data())
def test_stop_texts_end_at_their_first_byte_complete(text: bytes, stops: list[bytes], data: st.DataObject) -> None:
    """The sequence ends with the token that completes the first stop text, also when a replay begins inside it."""
    ends = [text.find(stop) + len(stop) for stop in stops if stop in text]
    expected = (min(ends), Finish.STOP_BYTES) if ends else (len(text), None)
    start = data.draw(st.integers(0, min(ends) - 1 if ends else len(text)))
    assert expected == feed(StopParams(1000, stop_bytes=tuple(stops)), list(text), start_offset=start)
