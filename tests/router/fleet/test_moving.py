"""Migration through real streams: a worker is lost or left, another one goes on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from shoal.proto.v1 import worker_pb2 as pb
from shoal.router.errors import MigrationFailedError
from shoal.router.fleet.backend import Accepted, Tokens
from shoal.router.fleet.pool import Member, WorkerPool
from shoal.router.fleet.scripted_worker import Action, Break, Hang, Refuse, Say, Script, ScriptedWorker, doing
from shoal.router.fleet.worker_link import LinkSettings
from tests.router.fleet.pools import connected, outputs_of, work
from tests.router.talking import until


def goes_on(last: int) -> Script:
    """Counts: says each number after the last generated one, up to `last`; breaks nothing."""

    async def script(submit: pb.Submit) -> AsyncIterator[Action]:
        generated = [part for part in submit.prompt if part.role == pb.TOKEN_ROLE_GENERATED]
        said = generated[-1].ids[-1] if generated else 0
        for token in range(said + 1, last + 1):
            yield Say((token,), pb.SEQUENCE_FINISH_LENGTH if token == last else pb.SEQUENCE_FINISH_UNSPECIFIED)

    return script


def ids_of(outputs: list[Accepted | Tokens]) -> list[int]:
    """The tokens of all outputs."""
    return [token for output in outputs if isinstance(output, Tokens) for token in output.ids]


@pytest.mark.parametrize(
    "end",
    [
        Break(),
        Refuse(pb.REFUSAL_REASON_UNAVAILABLE, "leaving"),
        Refuse(pb.REFUSAL_REASON_INTERNAL, "a bug"),
        Say((9,), skip=3),
    ],
    ids=["dies", "leaves", "fails", "skips"],
)
async def test_another_worker_goes_on_where_the_first_stopped(end: Action, pool: WorkerPool) -> None:
    """It is told the tokens so far as generated, their number, and a higher attempt; the reader sees one stream."""
    async with ScriptedWorker(doing(Say((1,)), Say((2, 3)), end)) as first, ScriptedWorker(goes_on(6)) as second:
        await connected(pool, first, second)
        outputs = await outputs_of(pool, work())

    assert ids_of(outputs) == [1, 2, 3, 4, 5, 6]
    assert [output.offset for output in outputs if isinstance(output, Tokens)] == [0, 1, 3, 4, 5]
    (told,) = second.submits
    assert (told.attempt, told.start_offset) == (2, 3)
    assert [(part.role, list(part.ids)) for part in told.prompt] == [
        (pb.TOKEN_ROLE_GIVEN, [1, 2]),
        (pb.TOKEN_ROLE_GENERATED, [1, 2, 3]),
    ]
    assert told.limits == work().limits


async def test_the_same_worker_goes_on_when_it_is_back(pool: WorkerPool) -> None:
    """With nobody else the pause lasts until the worker can be reached again."""
    dead = asyncio.Event()

    async def dies_once(submit: pb.Submit) -> AsyncIterator[Action]:
        if not dead.is_set():
            dead.set()
            yield Say((1,))
            yield Break()
        async for action in goes_on(3)(submit):
            yield action

    async with ScriptedWorker(dies_once) as worker:
        await connected(pool, worker)
        outputs = await outputs_of(pool, work())

    assert ids_of(outputs) == [1, 2, 3]
    assert [submit.attempt for submit in worker.submits] == [1, 2]


async def test_what_kills_its_workers_is_given_up(pool: WorkerPool) -> None:
    """Without a token between, a few losses in a row end the request; the error says how far it got."""

    async def dies(submit: pb.Submit) -> AsyncIterator[Action]:
        if not submit.start_offset:
            yield Say((1, 2))
        yield Break()

    async with ScriptedWorker(dies) as first, ScriptedWorker(dies) as second:
        await connected(pool, first, second)
        with pytest.raises(MigrationFailedError) as caught:
            await outputs_of(pool, work())

    assert (caught.value.delivered, caught.value.tries) == (2, len(first.submits + second.submits)) == (2, 4)
    assert caught.value.retryable
    assert "after 2 tokens" in str(caught.value)


async def test_who_took_a_request_does_not_lose_it_for_want_of_room(pool: WorkerPool) -> None:
    """A full worker is asked again and again once tokens were delivered: early refusal is for new requests."""
    asked = 0

    async def full_at_first(submit: pb.Submit) -> AsyncIterator[Action]:
        nonlocal asked
        asked += 1
        if asked < 4:
            yield Refuse(pb.REFUSAL_REASON_OVERLOADED, "full")
        async for action in goes_on(3)(submit):
            yield action

    async with ScriptedWorker(doing(Say((1,)), Break())) as first:
        await connected(pool, first)
        stream = pool.submit(work())
        begun = [await anext(stream), await anext(stream)]
        async with ScriptedWorker(full_at_first) as second:
            pool.set_members([Member(second.address)])
            rest = [output async for output in stream]

    assert ids_of([*begun, *rest]) == [1, 2, 3]
    assert asked == 4


async def test_who_computes_the_same_is_preferred(pool: WorkerPool) -> None:
    """Among those that are free, one of the same numerics id goes on."""
    dies, other = doing(Say((1,)), Break()), goes_on(2)
    async with (
        ScriptedWorker(dies, numerics_id="a") as first,
        ScriptedWorker(other, numerics_id="b") as second,
        ScriptedWorker(other, numerics_id="a") as third,
    ):
        await connected(pool, first)
        stream = pool.submit(work())
        begun = [await anext(stream), await anext(stream)]
        await connected(pool, first, second, third)
        rest = [output async for output in stream]

        assert (second.submits, len(third.submits)) == ([], 1)
    assert not any(isinstance(output, Tokens) and output.numerics_changed for output in [*begun, *rest])


async def test_other_bits_are_told(pool: WorkerPool) -> None:
    """Where only another kind of worker is left it goes on, and everything it says is marked."""
    async with (
        ScriptedWorker(doing(Say((1,)), Break()), numerics_id="a") as first,
        ScriptedWorker(goes_on(3), numerics_id="b") as second,
    ):
        await connected(pool, first)
        stream = pool.submit(work())
        begun = [await anext(stream), await anext(stream)]
        pool.set_members([Member(second.address)])
        rest = [output async for output in stream]

    outputs = [output for output in [*begun, *rest] if isinstance(output, Tokens)]
    assert [(output.ids, output.numerics_changed) for output in outputs] == [((1,), False), ((2,), True), ((3,), True)]


async def test_a_smaller_worker_is_not_asked(pool: WorkerPool) -> None:
    """A worker whose context does not hold what was promised would end the answer early."""
    async with (
        ScriptedWorker(doing(Say((1,)), Break()), max_context=4096) as first,
        ScriptedWorker(goes_on(2), max_context=64) as second,
        ScriptedWorker(goes_on(2), max_context=4096) as third,
    ):
        await connected(pool, first)
        stream = pool.submit(work())
        begun = [await anext(stream), await anext(stream)]
        await connected(pool, first, second, third)
        rest = [output async for output in stream]

        assert (ids_of([*begun, *rest]), second.submits) == ([1, 2], [])


async def test_the_pause_is_measured() -> None:
    """With the next token it is told why there was a pause and how long it was."""
    told: list[tuple[str, float]] = []
    settings = LinkSettings("r", "hash", max_unread_tokens=1000, accept_seconds=0.5)
    pool = WorkerPool(settings, 1.0, migrated=lambda reason, seconds: told.append((reason, seconds)))
    async with ScriptedWorker(doing(Say((1,)), Break())) as first, ScriptedWorker(goes_on(2)) as second:
        await connected(pool, first, second)
        await outputs_of(pool, work())
        await pool.close()

    ((reason, seconds),) = told
    assert reason == "worker_lost"
    assert 0 < seconds < 5


async def test_who_leaves_finishes_first(pool: WorkerPool) -> None:
    """A worker that is no member any more gets no new work; what runs there goes on to its end."""
    going = asyncio.Event()

    async def script(submit: pb.Submit) -> AsyncIterator[Action]:
        yield Say((5,))
        await going.wait()
        yield Say((6,), pb.SEQUENCE_FINISH_LENGTH)

    async with ScriptedWorker(script) as worker:
        await connected(pool, worker)
        task = asyncio.create_task(outputs_of(pool, work()))
        await until(lambda: len(worker.submits) == 1)
        pool.set_members([])
        assert pool.eligible() == []
        going.set()

        assert isinstance(last := (await task)[-1], Tokens)
        assert last.ids == (6,)


@pytest.mark.parametrize("drains", [False, True], ids=["leaves", "drains"])
async def test_who_leaves_hands_over_when_somebody_stays(drains: bool, pool: WorkerPool) -> None:
    """What runs on a worker that left or drains goes on at another one, and the first is told to stop."""
    async with ScriptedWorker(doing(Say((1,)), Hang())) as first, ScriptedWorker(goes_on(3)) as second:
        await connected(pool, first)
        task = asyncio.create_task(outputs_of(pool, work()))
        await until(lambda: len(first.submits) == 1)
        leaving = [Member(first.address, draining=True)] if drains else []
        pool.set_members([*leaving, Member(second.address)])

        assert ids_of(await task) == [1, 2, 3]
        await until(lambda: len(first.cancels) == 1)
        assert ids_of(await outputs_of(pool, work("new"))) == [1, 2, 3]
        assert len(first.submits) == 1


async def test_who_leaves_is_not_left_for_another_kind(pool: WorkerPool) -> None:
    """While nobody who computes the same bits stays, what runs there goes on there."""
    going = asyncio.Event()

    async def script(submit: pb.Submit) -> AsyncIterator[Action]:
        yield Say((1,))
        await going.wait()
        yield Say((2,), pb.SEQUENCE_FINISH_LENGTH)

    async with (
        ScriptedWorker(script, numerics_id="a") as first,
        ScriptedWorker(goes_on(3), numerics_id="b") as second,
    ):
        await connected(pool, first)
        task = asyncio.create_task(outputs_of(pool, work()))
        await until(lambda: len(first.submits) == 1)
        pool.set_members([Member(first.address, draining=True), Member(second.address)])
        await until(lambda: len(pool.eligible()) == 1)
        going.set()

        assert ids_of(await task) == [1, 2]
        assert second.submits == []
