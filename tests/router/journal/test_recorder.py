"""Tokens on their way to the journal."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from shoal.cluster.embedded_redis import EmbeddedRedis
from shoal.proto.v1.worker_pb2 import SEQUENCE_FINISH_LENGTH, SEQUENCE_FINISH_UNSPECIFIED
from shoal.router.errors import SessionsAwayError, TakenOverError
from shoal.router.fleet.backend import Tokens
from shoal.router.journal.journal import Journal
from shoal.router.journal.lease import Lease
from shoal.router.journal.recorder import Recorder
from shoal.router.sessions.redis_store import connect
from tests.router.journal.conftest import ids_of, record
from tests.router.talking import until

GOES_ON = SEQUENCE_FINISH_UNSPECIFIED


def said(offset: int, *ids: int, finish: int = GOES_ON) -> Tokens:
    """A worker's output."""
    return Tokens(offset, ids, (), finish)  # type: ignore[arg-type]  # the stub's enum numbers are a NewType of int


@pytest.fixture
async def recorder(journal: Journal) -> AsyncIterator[Recorder]:
    """A running one."""
    made = Recorder(journal)
    task = asyncio.create_task(made.run())
    yield made
    task.cancel()


async def test_many_steps_become_few_entries(recorder: Recorder, journal: Journal) -> None:
    """What comes within a period is one entry, and nothing waits for it."""
    recording = recorder.open(await journal.accept(record(), "ours", seconds=60))
    for i in range(50):
        recording.add(said(i, i, finish=SEQUENCE_FINISH_LENGTH if i == 49 else GOES_ON))
    await recording.close()
    view = await journal.read("t", "w")

    assert list(range(50)) == await ids_of(journal)
    assert view is not None
    assert ("done", 1) == (view.state, len(view.tokens))


async def test_a_quiet_request_keeps_its_lease(recorder: Recorder, journal: Journal) -> None:
    """A long prompt says nothing for longer than a lease; its request is no orphan."""
    recorder.open(await journal.accept(record(), "ours", seconds=60))
    for _ in range(5):
        await asyncio.sleep(0.1)
        view = await journal.read("t", "w")
        assert view is not None
        assert not view.orphaned


async def test_who_was_taken_over_learns_it(recorder: Recorder, journal: Journal) -> None:
    """The next thing said, or a lease renewed, tells the former owner; its tokens are not stored."""
    recording = recorder.open(await journal.accept(record(), "ours", seconds=60))
    await journal.take_over("t", "w", "another", orphaned=False)
    recording.add(said(0, 1))
    await until(lambda: recording.taken_over)
    with pytest.raises(TakenOverError):
        await recording.note("n", b"")

    assert [] == await ids_of(journal)


async def test_a_router_that_leaves_lets_go(recorder: Recorder, journal: Journal) -> None:
    """Its requests are orphans at once."""
    recorder.open(await journal.accept(record(), "ours", seconds=60))
    await recorder.close()

    assert 2 == (await journal.take_over("t", "w", "another")).attempt


async def test_a_fact_comes_after_what_was_said_before(recorder: Recorder, journal: Journal) -> None:
    """Once a tool's result is kept, so are the tokens of its call."""
    recording = recorder.open(await journal.accept(record(), "ours", seconds=60))
    recording.add(said(0, 1, 2))
    await recording.note("tool", b"result")

    assert [1, 2] == await ids_of(journal)


async def test_tokens_wait_while_redis_is_away(tmp_path: Path) -> None:
    """Killed and back with its file: what was said meanwhile is stored, in order and once, and the request never
    waited."""
    with EmbeddedRedis(tmp_path / "redis") as server:
        client = connect(server.url)
        journal = Journal(client)
        recorder = Recorder(journal)
        task = asyncio.create_task(recorder.run())
        recording = recorder.open(await journal.accept(record(), "ours", seconds=60))
        recording.add(said(0, 0))
        await recording.flush()
        before = server.pid
        assert before is not None
        os.kill(before, signal.SIGKILL)
        for i in range(1, 100):
            recording.add(said(i, i))
            await asyncio.sleep(0.002)
        stored: list[int] = []
        async with asyncio.timeout(20):
            while len(stored) < 100:
                with contextlib.suppress(SessionsAwayError):
                    stored = await ids_of(journal)
                await asyncio.sleep(0.02)
        await recording.close()
        task.cancel()

        assert list(range(100)) == stored
        assert server.pid != before
        await client.aclose()


async def test_a_journal_that_stays_away_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond a bound nothing is kept in memory; the request goes on and cannot be resumed."""
    client = connect("unix:///nowhere/redis.sock")
    monkeypatch.setattr("shoal.router.journal.recorder._MOST_PENDING", 100)
    recording = Recorder(Journal(client)).open(Lease("t", "w", 1, "ours"))
    for i in range(150):
        recording.add(said(i, i))

    assert isinstance(recording.problem, SessionsAwayError)
    assert [] == recording.take()
    await client.aclose()
