"""One stream to one worker."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import replace
from typing import Any

import pytest

from shoal.proto.v1 import worker_pb2 as pb
from shoal.router.errors import SlowReaderError, WorkerFaultError, WorkerLostError
from shoal.router.fleet.backend import Accepted, Tokens, Work
from shoal.router.fleet.inbox import Inbox
from shoal.router.fleet.scripted_worker import Action, Hang, Say, ScriptedWorker, doing, saying
from shoal.router.fleet.worker_link import LinkSettings, WorkerLink
from shoal.router.harmony.message import Run
from tests.router.talking import until

SETTINGS = LinkSettings("r", "ours", max_unread_tokens=10, accept_seconds=1.0)


def work(request_id: str = "q", attempt: int = 1, start_offset: int = 0) -> Work:
    """Something to do."""
    return Work(
        request_id, (Run((1,), False),), 3, pb.WorkerSampling(), pb.WorkerLimits(max_tokens=100), 0.0,
        attempt=attempt, start_offset=start_offset,
    )  # fmt: skip


async def open_link(worker: ScriptedWorker) -> WorkerLink:
    """A connected link."""
    link = WorkerLink(worker.address, SETTINGS, lambda: None)
    await until(lambda: link.connected)
    return link


async def test_work_is_told_in_full() -> None:
    """What the router decided arrives: roles, numbering, seed."""
    async with ScriptedWorker(saying([1])) as worker:
        link = await open_link(worker)
        made = Work(
            "q", (Run((1, 2), False), Run((3,), True)), 2**64 - 1, pb.WorkerSampling(temperature=0.5),
            pb.WorkerLimits(max_tokens=4), 5.0, choice=2, attempt=3, start_offset=1, cache_salt=b"s", traceparent="t",
        )  # fmt: skip
        async with aclosing(link.submit(made)) as outputs:
            async for _ in outputs:
                pass
        await link.close()

    (told,) = worker.submits
    assert told == made.message()
    assert [part.role for part in told.prompt] == [pb.TOKEN_ROLE_GIVEN, pb.TOKEN_ROLE_GENERATED]


async def test_numbering_goes_on_from_the_start_offset() -> None:
    """A continued sequence's first token has the number after those already delivered."""
    async with ScriptedWorker(saying([7, 8])) as worker:
        link = await open_link(worker)
        async with aclosing(link.submit(work(start_offset=5))) as outputs:
            offsets = [output.offset async for output in outputs if isinstance(output, Tokens)]
        await link.close()

    assert offsets == [5, 6]


async def test_outputs_of_an_older_attempt_are_ignored() -> None:
    """A late message of an attempt that is over does not reach the new one."""

    async def script(submit: pb.Submit) -> AsyncIterator[Action]:
        yield Say((submit.attempt,))
        yield Hang()

    async with ScriptedWorker(script) as worker:
        link = await open_link(worker)
        async with aclosing(link.submit(work(attempt=2))) as outputs:
            assert await anext(outputs)
            stale = pb.SequenceOutput(request_id="q", attempt=1, offset=1, ids=[99])
            link._deal_out(pb.ConnectResponse(step=pb.Step(outputs=[stale])))
            tokens = await anext(outputs)
        await link.close()

    assert isinstance(tokens, Tokens)
    assert tokens.ids == (2,)


async def test_tokens_before_acceptance_are_a_fault() -> None:
    """A worker that talks before it accepted breaks the protocol; accepting twice is harmless."""
    async with ScriptedWorker(doing(Hang())) as worker:
        link = await open_link(worker)
        outputs = link.submit(work())
        waiting = asyncio.ensure_future(anext(outputs))
        await asyncio.sleep(0)
        early = pb.SequenceOutput(request_id="q", attempt=1, ids=[1])
        link._deal_out(pb.ConnectResponse(step=pb.Step(outputs=[early])))
        with pytest.raises(WorkerFaultError, match="before it accepted"):
            await waiting

        twice = link.submit(work("again"))
        waiting = asyncio.ensure_future(anext(twice))
        await asyncio.sleep(0)
        for _ in range(2):
            link._deal_out(pb.ConnectResponse(accepted=pb.Accepted(request_id="again", attempt=1)))
        assert isinstance(await waiting, Accepted)
        late = pb.SequenceOutput(request_id="again", attempt=1, ids=[1])
        link._deal_out(pb.ConnectResponse(step=pb.Step(outputs=[late])))
        assert isinstance(await anext(twice), Tokens)
        await twice.aclose()
        await link.close()


async def test_the_link_comes_back() -> None:
    """A broken stream fails what ran on it, and is opened again by itself."""
    async with ScriptedWorker(doing(Say((1,)), Hang())) as worker:
        link = await open_link(worker)
        async with aclosing(link.submit(work())) as outputs:
            await anext(outputs)
            await anext(outputs)
            worker.break_streams()
            with pytest.raises(WorkerLostError):
                await anext(outputs)
        await until(lambda: len(worker.routers) == 2 and link.connected)
        await link.close()


async def test_a_worker_that_comes_later_is_found() -> None:
    """Nobody listens at first; once somebody does, the link is up within its delay."""
    early = ScriptedWorker(saying([1]))
    address = await early.start()
    await early.stop()
    port = int(address.rpartition(":")[2])
    link = WorkerLink(address, SETTINGS, lambda: None)
    await asyncio.sleep(0.1)
    assert not link.connected
    late = ScriptedWorker(saying([1]))
    await late.start(port)
    await until(lambda: link.connected)
    await link.close()
    await late.stop()


@pytest.mark.parametrize(
    "welcome", [{"tokenizer_hash": "theirs"}, {"protocol": 2}, {"protocol": 0}], ids=["tokenizer", "newer", "none"]
)
async def test_a_worker_of_another_world_is_not_used(welcome: dict[str, Any]) -> None:
    """Another vocabulary or protocol would give wrong text: such a worker never counts as connected."""
    async with ScriptedWorker(saying([1]), **welcome) as worker:
        link = WorkerLink(worker.address, SETTINGS, lambda: None)
        await until(lambda: len(worker.routers) >= 2)
        assert not link.connected
        await link.close()


async def test_a_link_that_is_down_refuses_work() -> None:
    """Work is never queued for a worker that is not there."""
    link = WorkerLink("127.0.0.1:1", SETTINGS, lambda: None)
    with pytest.raises(WorkerLostError):
        await anext(link.submit(work()))
    await link.close()


async def test_load_counts_what_was_just_submitted() -> None:
    """Two submits in a row are seen before the worker's first report."""
    async with ScriptedWorker(doing(Hang())) as worker:
        link = await open_link(worker)
        tasks = [asyncio.ensure_future(anext(link.submit(work(name)))) for name in "ab"]
        await asyncio.sleep(0)

        assert link.load.sequences == 2
        await asyncio.gather(*tasks)
        await link.close()


async def test_a_prompt_is_a_backlog_until_its_first_token() -> None:
    """It is counted as soon as it is submitted, and not any more once the worker generates."""
    computed = asyncio.Event()

    async def script(submit: pb.Submit) -> AsyncIterator[Action]:
        await computed.wait()
        yield Say((1,))
        yield Hang()

    async with ScriptedWorker(script) as worker:
        link = await open_link(worker)
        async with aclosing(link.submit(replace(work(), prompt=(Run((7,) * 1200, False),)))) as outputs:
            accepted = asyncio.ensure_future(anext(outputs))
            await until(lambda: bool(worker.submits))
            assert (link.load.steps_behind, link.load.backlog_own) == (2, 1200)
            computed.set()
            await accepted
            await anext(outputs)
            assert link.load.steps_behind == 0
        await link.close()


async def test_an_inbox_gives_what_came_before_the_failure() -> None:
    """Tokens that arrived are read before the error that followed them; nothing after it is taken."""
    inbox = Inbox(10)
    token = Tokens(0, (1,), (), pb.SEQUENCE_FINISH_UNSPECIFIED)
    inbox.put(token)
    inbox.fail(WorkerLostError("gone"))
    inbox.put(token)
    inbox.fail(SlowReaderError("later"))

    assert await inbox.get() is token
    with pytest.raises(WorkerLostError):
        await inbox.get()


async def test_an_inbox_is_bounded_by_tokens() -> None:
    """One token too many fails it; what was read makes room again."""
    inbox = Inbox(3)
    three = Tokens(0, (1, 2, 3), (), pb.SEQUENCE_FINISH_UNSPECIFIED)
    inbox.put(three)
    await inbox.get()
    inbox.put(three)
    inbox.put(three)
    await inbox.get()
    with pytest.raises(SlowReaderError):
        await inbox.get()
