"""Room for requests, and the queue before it."""

from __future__ import annotations

import asyncio
from collections import Counter
from contextlib import AsyncExitStack

import pytest

from shoal.router.admission import Admission, Claim
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


async def test_a_full_queue_sends_away_the_last_of_who_fills_it() -> None:
    """One tenant cannot keep others out of the queue; who fills it most loses his latest."""
    gate, done = admission(1, 4), asyncio.Event()

    async def claim(flow: str) -> None:
        async with gate.admitted(Claim(flow)):
            await done.wait()

    noisy = [asyncio.create_task(claim("noisy")) for _ in range(5)]
    await asyncio.sleep(0)
    quiet = asyncio.create_task(claim("quiet"))
    await asyncio.sleep(0)
    with pytest.raises(QueueFullError):
        await noisy[-1]
    with pytest.raises(QueueFullError):
        await claim("noisy")
    done.set()
    await asyncio.gather(quiet, *noisy[:-1])

    assert (gate.running, gate.waiting) == (0, 0)


async def test_one_flow_leaves_places_for_others() -> None:
    """With a share of three quarters the fourth place is free for somebody else, at once."""
    gate, done = Admission(4, 10, lambda: 0.0, flow_share=0.75), asyncio.Event()

    async def claim(flow: str) -> None:
        async with gate.admitted(Claim(flow)):
            await done.wait()

    tasks = [asyncio.create_task(claim("noisy")) for _ in range(6)]
    await asyncio.sleep(0)
    assert (gate.running, gate.waiting) == (3, 3)
    tasks.append(asyncio.create_task(claim("quiet")))
    await asyncio.sleep(0)
    assert (gate.running, gate.waiting) == (4, 3)
    done.set()
    await asyncio.gather(*tasks)
    assert gate.running == 0


def jain(values: list[float]) -> float:
    """1: all equal; 1 / n: one has all."""
    return sum(values) ** 2 / (len(values) * sum(value * value for value in values))


@pytest.mark.parametrize(("share", "longest_wait"), [(0.5, 0), (1.0, 8)], ids=["half is left to others", "nothing is"])
async def test_a_noisy_neighbour_costs_as_much_as_is_stated(share: float, longest_wait: int) -> None:
    """One tenant asks twenty times as much, for long prompts. Four others who keep to half of the places wait for none
    with the other half kept from it, so their first tokens come as soon as alone; else for the end of one request.

    Time is counted in ticks of a server that serves each request for 8 of them.
    """
    ticks, served, longest, waits = 0, Counter[str](), 8, dict[str, list[int]]()
    gate = Admission(8, 64, lambda: float(ticks), flow_share=share)

    async def ask(tenant: str, cost: float) -> None:
        nonlocal served
        began = ticks
        try:
            async with gate.admitted(Claim(tenant, cost=cost)):
                waits.setdefault(tenant, []).append(ticks - began)
                ends = ticks + longest
                while ticks < ends:  # noqa: ASYNC110  # time is counted, not slept
                    await asyncio.sleep(0)
                served[tenant] += 1
        except QueueFullError:
            pass

    tasks = set[asyncio.Task[None]]()
    victims = [f"victim{n}" for n in range(4)]
    for tick in range(1200):
        ticks = tick
        for number, victim in enumerate(victims):
            if tick % longest == 2 * number:  # each asks for one place in eight
                tasks.add(asyncio.create_task(ask(victim, 1.0)))
        for _ in range(20 if tick % longest == 0 else 0):
            tasks.add(asyncio.create_task(ask("noisy", 20.0)))
        for _ in range(6):
            await asyncio.sleep(0)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)

    for victim in victims:
        alone = 1200 // longest
        assert served[victim] >= 0.9 * alone
        later = sorted(waits[victim][5:])
        assert later[int(len(later) * 0.99)] <= longest_wait
    assert jain([float(served[victim]) for victim in victims]) >= 0.95
    assert served["noisy"] > served["victim0"]  # what others leave is not wasted
