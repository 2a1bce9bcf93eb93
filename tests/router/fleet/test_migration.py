"""One sequence over many workers: pure decisions."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.proto.v1 import worker_pb2 as pb
from shoal.router.errors import (
    MigrationFailedError,
    WireError,
    WorkerFaultError,
    WorkerLeavingError,
    WorkerLostError,
    WorkersBusyError,
)
from shoal.router.fleet.backend import Accepted, Tokens, Work
from shoal.router.fleet.migration import Bounds, Candidate, Migration
from shoal.router.harmony.message import Run

GOING_ON = pb.SEQUENCE_FINISH_UNSPECIFIED
LOST = WorkerLostError("gone")
PROMPT = (Run((1, 2), False), Run((3,), True))


def migration(start_offset: int = 0, **bounds: Any) -> Migration:
    """Of a request with three prompt tokens."""
    work = Work(
        "q", PROMPT, 3, pb.WorkerSampling(), pb.WorkerLimits(max_tokens=99), 0.0, attempt=5, start_offset=start_offset
    )
    return Migration(work, dataclasses.replace(Bounds(), **bounds))


def say(moving: Migration, *ids: int, cached: int = 0) -> Tokens:
    """What the reader gets of tokens."""
    passed = moving.passes(Tokens(moving.delivered, ids, (), GOING_ON, cached))
    assert isinstance(passed, Tokens)
    return passed


def accept(moving: Migration, numerics_id: str = "a") -> Accepted | Tokens | None:
    """A worker takes it."""
    return moving.passes(Accepted("w", numerics_id))


@given(st.lists(st.one_of(st.none(), st.lists(st.integers(0, 99), min_size=1, max_size=4)), max_size=30))
def test_the_next_worker_is_told_all_that_was_said(happened: list[list[int] | None]) -> None:
    """Whatever was lost in between: the prompt as it was, then every token that was passed on, and their number."""
    moving = migration(losses=99, stuck=99)
    said: list[int] = []
    attempts = [moving.next_work().attempt]
    for ids in happened:
        if ids is None:
            moving.failed("w", LOST, 0.0)
            work = moving.next_work()
            attempts.append(work.attempt)
            assert list(work.prompt) == [*PROMPT, *([Run(tuple(said), True)] if said else [])]
            assert work.start_offset == len(said) == moving.delivered
        else:
            say(moving, *ids)
            said += ids
    assert attempts == list(range(5, 5 + len(attempts)))


def test_an_earlier_owners_tokens_count() -> None:
    """A sequence that began elsewhere goes on counting from there."""
    moving = migration(start_offset=1)
    accept(moving)
    say(moving, 7)
    moving.failed("w", LOST, 0.0)

    assert (moving.next_work().start_offset, moving.delivered) == (2, 2)


@given(st.integers(1, 5), st.integers(0, 3))
def test_losses_in_a_row_are_bounded(stuck: int, tokens: int) -> None:
    """The bound counts from the last token; the error names what was delivered and how many were tried."""
    moving = migration(stuck=stuck)
    accept(moving)
    for _ in range(tokens):
        moving.next_work()
        say(moving, 1)
        if stuck > 1:
            moving.failed("w", LOST, 0.0)
    say(moving, 1)
    for _ in range(stuck - 1):
        moving.next_work()
        moving.failed("w", LOST, 0.0)
    with pytest.raises(MigrationFailedError) as caught:
        moving.failed("w", LOST, 0.0)
    assert caught.value.delivered == tokens + 1


def test_losses_are_bounded_in_all() -> None:
    """A token between does not make trying endless."""
    moving = migration(losses=3)
    accept(moving)
    for _ in range(3):
        moving.next_work()
        say(moving, 1)
        moving.failed("w", LOST, 0.0)
    say(moving, 1)
    with pytest.raises(MigrationFailedError):
        moving.failed("w", LOST, 0.0)


def test_without_losses_the_first_is_told_as_it_is() -> None:
    """Migration can be switched off."""
    with pytest.raises(WorkerLostError, match="gone"):
        migration(losses=0).failed("w", LOST, 0.0)


def test_handing_over_is_bounded_by_time_alone() -> None:
    """A rolling update may move a sequence many times; but not for ever without a token."""
    moving = migration(losses=2, stuck=2, seconds=10.0)
    accept(moving)
    for now in range(10):
        moving.failed("w", WorkerLeavingError("drains"), float(now))
    with pytest.raises(MigrationFailedError, match=r"10\.0 s without a token; at last: drains"):
        moving.failed("w", WorkerLeavingError("drains"), 10.0)


def test_waiting_is_bounded() -> None:
    """With nobody to choose the end comes after the same time."""
    moving = migration(seconds=10.0)
    accept(moving)
    moving.failed("w", LOST, 0.0)
    assert moving.choose_among([], 9.9) == []
    with pytest.raises(MigrationFailedError):
        moving.choose_among([], 10.0)


def test_nobody_took_a_new_request() -> None:
    """It is not kept as long as one that runs, and hears the problem itself."""
    moving = migration(seconds=10.0, new_seconds=1.0)
    moving.failed("w", WorkerLeavingError("drains"), 0.0)
    with pytest.raises(WorkerLeavingError, match="drains"):
        moving.choose_among([], 1.0)


@pytest.mark.parametrize("error", [WorkersBusyError("full"), WorkerFaultError("a bug")], ids=["busy", "fault"])
def test_new_requests_are_not_queued_for_somebody(error: WireError) -> None:
    """When everybody is full, or the only one failed at it, the client is told so at once."""
    moving = migration()
    moving.failed("w", error, 0.0)
    with pytest.raises(type(error)):
        moving.choose_among([Candidate("w", "a", True)], 0.0)


def test_who_failed_is_avoided_until_a_pause() -> None:
    """Others come first; after a pause, or a token from somebody else, it may be tried again."""
    moving = migration()
    both = [Candidate("v", "a", True), Candidate("w", "a", True)]
    accept(moving)
    moving.failed("v", LOST, 0.0)
    assert moving.choose_among(both, 0.0) == ["w"]
    moving.failed("w", LOST, 0.0)
    assert moving.choose_among(both, 0.0) == []
    moving.pause()
    assert moving.choose_among(both, 0.0) == ["v", "w"]


def test_pauses_grow_and_are_bounded() -> None:
    """A moment at first, a second at most."""
    moving = migration()
    pauses = [moving.pause() for _ in range(20)]

    assert pauses[:3] == [0.05, 0.1, 0.2]
    assert pauses == sorted(pauses)
    assert max(pauses) == 1.0


def test_the_same_bits_are_waited_for_a_little() -> None:
    """While one of the same kind exists and is not ready, another kind waits; then it is better than nothing."""
    moving = migration(same_seconds=2.0)
    accept(moving, "a")
    say(moving, 1)
    moving.failed("w", LOST, 0.0)
    candidates = [Candidate("x", "b", True), Candidate("y", "a", False)]

    assert moving.choose_among(candidates, 1.9) == []
    assert moving.choose_among(candidates[:1], 1.9) == ["x"]
    assert moving.choose_among(candidates, 2.0) == ["x"]
    assert moving.choose_among([*candidates, Candidate("z", "a", True)], 2.0) == ["z"]


def test_before_a_token_all_kinds_are_equal() -> None:
    """Nothing was said yet that others could contradict."""
    moving = migration()
    accept(moving, "a")
    moving.failed("w", LOST, 0.0)
    assert moving.choose_among([Candidate("x", "b", True)], 0.0) == ["x"]
    accept(moving, "b")

    assert not say(moving, 1).numerics_changed


def test_once_changed_stays_changed() -> None:
    """Back at the first kind the stream is no longer what an undisturbed run would have said."""
    moving = migration()
    accept(moving, "a")
    say(moving, 1)
    accept(moving, "b")
    assert say(moving, 1).numerics_changed
    accept(moving, "a")

    assert say(moving, 1).numerics_changed


def test_what_a_replay_finds_cached_is_not_told() -> None:
    """The usage of a disturbed request equals that of an undisturbed one."""
    moving = migration()
    moving.next_work()
    assert say(moving, 1, cached=16).cached_tokens == 16
    moving.failed("w", LOST, 0.0)
    moving.next_work()

    assert say(moving, 1, cached=32).cached_tokens == 0
