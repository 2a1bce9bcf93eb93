"""Many workers as one: choice, a second try, coming and going."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from shoal.proto.v1 import worker_pb2 as pb
from shoal.router.errors import NoWorkerError, WorkersBusyError
from shoal.router.fleet.backend import Accepted, Tokens
from shoal.router.fleet.pool import Member, WorkerPool
from shoal.router.fleet.scripted_worker import Action, Break, Hang, Refuse, Say, ScriptedWorker, doing, saying
from shoal.router.fleet.worker_link import LinkSettings
from tests.router.fleet.pools import connected, outputs_of, work
from tests.router.talking import until


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
