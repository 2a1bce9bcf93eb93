"""Room for requests, and the queue before it."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack

import pytest

from shoal.router.admission import Admission
from shoal.router.errors import QueueFullError, StoppingError


def admission(running: int, waiting: int) -> Admission:
    """With a clock that stands still."""
    return Admission(running, waiting, lambda: 0.0)


async def hold(gate: Admission, until: asyncio.Event) -> None:
    """Be served until the event."""
    async with gate.admitted():
        await until.wait()


async def test_the_queue_is_served_in_order() -> None:
    """Who came first enters first."""
    gate, order = admission(1, 10), []

    async def enter(number: int) -> None:
        async with gate.admitted():
            order.append(number)
            await asyncio.sleep(0)

    await asyncio.gather(*(enter(number) for number in range(5)))

    assert order == [0, 1, 2, 3, 4]
    assert (gate.running, gate.waiting) == (0, 0)


async def test_a_full_queue_refuses_with_a_hint() -> None:
    """Beyond running and waiting a request is refused at once, and told when to return."""
    gate, done = admission(1, 1), asyncio.Event()
    tasks = [asyncio.create_task(hold(gate, done)) for _ in range(2)]
    await asyncio.sleep(0)
    with pytest.raises(QueueFullError) as caught:
        async with gate.admitted():
            pass
    done.set()
    await asyncio.gather(*tasks)

    assert caught.value.retry_after_ms is not None
    assert caught.value.retry_after_ms >= 100


@pytest.mark.parametrize("entered", [False, True])
async def test_who_gives_up_waiting_leaves_no_trace(entered: bool) -> None:
    """A cancelled waiter frees its place in the queue, or the room it had just been given."""
    gate, done = admission(1, 5), asyncio.Event()
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(gate.admitted())
        waiter = asyncio.create_task(hold(gate, done))
        await asyncio.sleep(0)
        if entered:
            await stack.aclose()  # hands the room on; the waiter has not run yet
        waiter.cancel()
        await asyncio.gather(waiter, return_exceptions=True)

        assert (gate.running, gate.waiting) == (0 if entered else 1, 0)
    assert gate.running == 0


async def test_stopping_sends_the_queue_away() -> None:
    """Once stopped, who waits and who comes is told that the router shuts down; who runs is left alone."""
    gate, done = admission(1, 5), asyncio.Event()
    running = asyncio.create_task(hold(gate, done))
    await asyncio.sleep(0)
    waiting = asyncio.create_task(hold(gate, done))
    await asyncio.sleep(0)
    gate.stop()
    with pytest.raises(StoppingError):
        await waiting
    with pytest.raises(StoppingError):
        async with gate.admitted():
            pass

    assert not running.done()
    done.set()
    await running
