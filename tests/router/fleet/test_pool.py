"""Many workers as one: choice, a second try, coming and going."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

import pytest

from shoal.proto.v1 import worker_pb2 as pb
from shoal.router.errors import MigrationFailedError, NoWorkerError, WorkersBusyError
from shoal.router.fleet.backend import Accepted, Tokens, Work
from shoal.router.fleet.pool import Member, WorkerPool
from shoal.router.fleet.scripted_worker import Action, Break, Hang, Refuse, Say, Script, ScriptedWorker, doing, saying
from shoal.router.fleet.worker_link import LinkSettings
from shoal.router.harmony.message import Run
from tests.router.talking import until


@pytest.fixture
async def pool() -> AsyncIterator[WorkerPool]:
    """A pool that waits briefly."""
    made = WorkerPool(LinkSettings("r", "hash", max_unread_tokens=1000, accept_seconds=0.5), wait_seconds=1.0)
    yield made
    await made.close()


def work(request_id: str = "q", **fields: Any) -> Work:
    """Something to do."""
    limits = pb.WorkerLimits(max_tokens=100)
    return Work(request_id, (Run((1, 2), False),), 3, pb.WorkerSampling(), limits, 0.0, **fields)


async def outputs_of(pool: WorkerPool, made: Work) -> list[Accepted | Tokens]:
    """Everything until the end."""
    async with aclosing(pool.submit(made)) as outputs:
        return [output async for output in outputs]


async def connected(pool: WorkerPool, *workers: ScriptedWorker) -> None:
    """Make them members and wait."""
    pool.set_members([Member(worker.address) for worker in workers])
    await until(lambda: len(pool.eligible()) == len(workers))


@pytest.mark.parametrize(
    "bad",
    [
        doing(Refuse(pb.REFUSAL_REASON_OVERLOADED)),
        doing(Refuse(pb.REFUSAL_REASON_UNAVAILABLE)),
        doing(Break()),
    ],
    ids=["overloaded", "unavailable", "dies"],
)
async def test_before_the_first_token_another_worker_is_tried(bad: Any, pool: WorkerPool) -> None:
    """A worker that cannot take the work costs a moment; the next attempt has a higher number."""
    async with ScriptedWorker(bad) as first, ScriptedWorker(saying([5]), worker_id="good") as second:
        await connected(pool, first, second)
        outputs = await outputs_of(pool, work())

    assert outputs[0] == Accepted("good", "scripted")
    assert [output.ids for output in outputs if isinstance(output, Tokens)] == [(5,)]
    assert [submit.attempt for submit in first.submits + second.submits] == [1, 2]


async def test_accepted_is_told_once(pool: WorkerPool) -> None:
    """A worker that accepts and dies before its first token is replaced without a second beginning."""

    async def accept_and_die(submit: pb.Submit) -> AsyncIterator[Action]:
        yield Say(())
        yield Break()

    async with ScriptedWorker(accept_and_die) as first, ScriptedWorker(saying([5])) as second:
        await connected(pool, first, second)
        outputs = await outputs_of(pool, work())

    assert sum(isinstance(output, Accepted) for output in outputs) == 1


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


async def test_when_all_are_busy_the_last_refusal_is_told(pool: WorkerPool) -> None:
    """Every worker is asked once, then the client hears that all are full."""
    busy = doing(Refuse(pb.REFUSAL_REASON_OVERLOADED, "full", 90))
    async with ScriptedWorker(busy) as first, ScriptedWorker(busy) as second:
        await connected(pool, first, second)
        with pytest.raises(WorkersBusyError) as caught:
            await outputs_of(pool, work())

    assert caught.value.retry_after_ms == 90
    assert [len(worker.submits) for worker in (first, second)] == [1, 1]


async def test_a_silent_worker_is_given_up(pool: WorkerPool) -> None:
    """A worker that neither accepts nor refuses in time is left for another, and told to forget the work."""

    async def silent(submit: pb.Submit) -> AsyncIterator[Action]:
        await asyncio.Event().wait()
        yield Hang()

    async with ScriptedWorker(silent) as first, ScriptedWorker(saying([5])) as second:
        await connected(pool, first, second)
        outputs = await outputs_of(pool, work())
        await until(lambda: len(first.cancels) == 1)

    assert isinstance(outputs[-1], Tokens)


async def test_the_least_loaded_worker_is_chosen(pool: WorkerPool) -> None:
    """Work that runs long does not draw more work to its worker."""
    async with ScriptedWorker(doing(Hang())) as first, ScriptedWorker(doing(Hang())) as second:
        await connected(pool, first, second)
        tasks = [asyncio.create_task(outputs_of(pool, work(f"q{i}"))) for i in range(6)]
        await until(lambda: len(first.submits) + len(second.submits) == 6)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    assert [len(worker.submits) for worker in (first, second)] == [3, 3]


async def test_a_request_waits_for_the_first_worker(pool: WorkerPool) -> None:
    """A worker that comes up within the wait serves the request that came before it."""
    async with ScriptedWorker(saying([5])) as worker:
        task = asyncio.create_task(outputs_of(pool, work()))
        await asyncio.sleep(0.05)
        pool.set_members([Member(worker.address)])

        assert len(await task) == 2


async def test_nobody_comes(pool: WorkerPool) -> None:
    """Without a worker the wait ends in an error that can be retried."""
    with pytest.raises(NoWorkerError) as caught:
        await outputs_of(pool, work())

    assert caught.value.retryable


async def test_a_group_that_is_not_ready_gets_nothing(pool: WorkerPool) -> None:
    """Its workers are connected, but chosen only once the registry says ready."""
    async with ScriptedWorker(saying([5])) as worker:
        pool.set_members([Member(worker.address, ready=False)])
        await until(lambda: worker.routers == ["r"])
        await asyncio.sleep(0.02)
        assert pool.model() is None
        pool.set_members([Member(worker.address, ready=True)])

        assert len(await outputs_of(pool, work())) == 2


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


async def test_facts_are_the_smallest_of_all(pool: WorkerPool) -> None:
    """Any worker can serve what the pool promises."""
    async with (
        ScriptedWorker(saying([1]), max_context=64, eos_token_ids=[9]) as first,
        ScriptedWorker(saying([1]), max_context=32, eos_token_ids=[9]) as second,
    ):
        await connected(pool, first, second)
        facts = await pool.wait_ready()

    assert (facts.max_context, facts.vocab_size, facts.eos_token_ids) == (32, 512, (9,))


async def test_a_closed_pool_leaves_nothing_running() -> None:
    """Neither of the members that are connected, nor of one that is just leaving."""
    before = asyncio.all_tasks()
    async with ScriptedWorker(doing(Hang())) as first, ScriptedWorker(doing(Hang())) as second:
        made = WorkerPool(LinkSettings("r", "hash", max_unread_tokens=1000, accept_seconds=0.5), wait_seconds=1.0)
        await connected(made, first, second)
        made.set_members([Member(second.address)])
        await made.close()
        left = [task.get_name() for task in asyncio.all_tasks() - before if task.get_name().startswith("worker ")]

    assert left == []
