"""One turn's hold on its session, over a real Redis, with everything that may come between its start and its end."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
import redis.asyncio

from shoal.router.errors import SessionGoneError, SessionsAwayError, TurnReservedError
from shoal.router.harmony.message import ChatMessage, Rendered
from shoal.router.sessions.redis_store import RedisSessions, session_key
from shoal.router.sessions.reservation import Patience, Reservation, reserved
from shoal.router.sessions.store import NewSession, Turn

HELLO = ChatMessage("user", "hello", rendered=Rendered((1, 2, 3)))
SHORT = Patience(lease=0.3, append=5.0)
LONG = Patience(lease=30.0, append=5.0)


@pytest.fixture
def store(client: redis.asyncio.Redis) -> RedisSessions:
    """The store underneath."""
    return RedisSessions(client)


def turn(number: int, writer: str, ttl: int = 60) -> Turn:
    """A turn with one message."""
    return Turn(number, (HELLO,), writer, ttl, "2026-11-20")


def follows(reservation: Reservation, writer: str) -> Turn:
    """The turn that was reserved."""
    session = reservation.session
    return turn(session.info.next_turn if session is not None else 0, writer)


async def written(store: RedisSessions) -> list[tuple[int, str]]:
    """Turn and writer of everything in the session."""
    session = await store.load("t", "s")
    return [(item.turn, item.writer) for item in session.items] if session is not None else []


@pytest.mark.parametrize("begins", [0, 1])
async def test_a_turn_of_a_session_that_is_gone_enters_no_other_of_its_name(begins: int, store: RedisSessions) -> None:
    """Deleted under the turn and begun anew by somebody else, whose turns have come as far: what was said to the old
    session is not in the new one."""
    await store.create("t", "s", NewSession(60, "maker", "2026-11-20"))
    for number in range(begins):
        await store.append("t", "s", turn(number, "old"))
    async with reserved(store, "t", "s", "late", patience=LONG) as late:
        await store.delete("t", "s")
        if begins:
            await store.reserve("t", "s", "new", 10)
            await store.append("t", "s", turn(0, "new"))
        else:
            await store.create("t", "s", NewSession(60, "again", "2026-11-20"))
        with pytest.raises(SessionGoneError):
            await late.append(turn(begins, "late"))

    assert await written(store) == [(0, "new")] * begins


async def test_a_deleted_session_stays_deleted_however_late_its_turn_ends(
    store: RedisSessions, client: redis.asyncio.Redis
) -> None:
    """Also when nothing remembers the deletion any more: what is deleted does not come back."""
    await store.create("t", "s", NewSession(60, "maker", "2026-11-20"))
    async with reserved(store, "t", "s", "late", patience=SHORT) as late:
        await store.delete("t", "s")
        await asyncio.sleep(0.5)
        assert await client.keys("*") == []
        with pytest.raises(SessionGoneError):
            await late.append(turn(0, "late"))

    assert await store.load("t", "s") is None


async def test_a_session_does_not_expire_under_its_turn(store: RedisSessions) -> None:
    """The answer takes longer than the session would have lived: it is still there for it, and lives on after that."""
    await store.append("t", "s", turn(0, "first", ttl=1))
    async with reserved(store, "t", "s", "slow", patience=Patience(lease=0.9)) as slow:
        await asyncio.sleep(1.6)
        await slow.append(turn(1, "slow", ttl=50))
    session = await store.load("t", "s")

    assert session is not None
    assert [0, 1] == [item.turn for item in session.items]
    assert session.info.expires_in > 40


async def test_a_turn_that_came_to_nothing_prolongs_a_session_by_its_lease_at_most(
    store: RedisSessions, client: redis.asyncio.Redis
) -> None:
    """Both keys live equally long."""
    await store.append("t", "s", turn(0, "first", ttl=1))
    await store.append("t", "long", turn(0, "first", ttl=1000))
    for name in ("s", "long"):
        async with reserved(store, "t", name, "nothing", patience=Patience(lease=10.0)):
            pass
    key, long = session_key("t", "s"), session_key("t", "long")
    times = [await client.pexpiretime(name) for name in (key, f"{key}:items")]

    assert times[0] == times[1]
    assert await client.pttl(key) <= 10_000
    assert 990 <= await client.ttl(long) <= 1000


async def test_who_lost_a_request_leaves_its_turn_to_who_goes_on_with_it(store: RedisSessions) -> None:
    """Two routers have had one request: the end of the first, whenever it comes, gives nobody else the turn."""
    async with reserved(store, "t", "s", "request", patience=SHORT):
        going_on = reserved(store, "t", "s", "request", patience=SHORT)
        again = await going_on.__aenter__()
    await asyncio.sleep(0.5)  # longer than the lease: who goes on renews it
    with pytest.raises(TurnReservedError):
        await store.reserve("t", "s", "other", 10)
    await again.append(follows(again, "request"))
    await going_on.__aexit__(None, None, None)

    assert await written(store) == [(0, "request")]


async def test_a_lease_that_ran_out_while_redis_was_away_is_taken_again(
    store: RedisSessions, client: redis.asyncio.Redis
) -> None:
    """Who began the turn keeps it unless somebody else took it meanwhile: a newcomer is told before it generates."""
    async with reserved(store, "t", "s", "first", patience=SHORT) as first:
        await client.delete(f"{session_key('t', 's')}:lease")
        await asyncio.sleep(0.3)
        with pytest.raises(TurnReservedError):
            await store.reserve("t", "s", "other", 10)
        await first.append(follows(first, "first"))

    assert await written(store) == [(0, "first")]


class _Slow:
    """A store that reserves at once and says so later."""

    def __init__(self, store: RedisSessions) -> None:
        self._store, self.reserved, self.told = store, asyncio.Event(), asyncio.Event()

    def __getattr__(self, name: str) -> object:
        return getattr(self._store, name)

    async def reserve(self, *arguments: Any) -> object:
        session = await self._store.reserve(*arguments)
        self.reserved.set()
        await self.told.wait()
        return session


async def test_who_goes_away_while_the_turn_is_reserved_leaves_it_free(store: RedisSessions) -> None:
    """A client that hangs up before the answer: nobody has to wait for the lease to end."""
    slow = _Slow(store)

    async def begin() -> None:
        async with reserved(slow, "t", "s", "gone", patience=LONG):  # type: ignore[arg-type]  # it has all methods
            raise AssertionError("it was cancelled before")

    beginning = asyncio.create_task(begin())
    await asyncio.wait_for(slow.reserved.wait(), 20)
    beginning.cancel()
    await asyncio.sleep(0)
    slow.told.set()
    await asyncio.wait([beginning])

    assert beginning.cancelled()
    assert await store.reserve("t", "s", "next", 10) is None


class _Deaf:
    """A store whose first append is done and not heard of."""

    def __init__(self, store: RedisSessions) -> None:
        self._store, self.stored, self.heard = store, asyncio.Event(), asyncio.Event()

    def __getattr__(self, name: str) -> object:
        return getattr(self._store, name)

    async def append(self, tenant: str, session_id: str, turn: Turn, born: str = "") -> None:
        await self._store.append(tenant, session_id, turn, born)
        self.stored.set()
        if not self.heard.is_set():
            await self.heard.wait()
            raise SessionsAwayError("the answer got lost")


async def test_a_turn_that_is_stored_was_stored_also_when_others_followed(store: RedisSessions) -> None:
    """The answer to the append is lost, and before it is tried again somebody has written the next turn."""
    deaf = _Deaf(store)
    async with reserved(deaf, "t", "s", "first", patience=LONG) as first:  # type: ignore[arg-type]  # it has all methods
        appending = asyncio.create_task(first.append(turn(0, "first")))
        await asyncio.wait_for(deaf.stored.wait(), 20)
        await store.append("t", "s", turn(1, "second"))
        deaf.heard.set()
        await appending

    assert await written(store) == [(0, "first"), (1, "second")]
