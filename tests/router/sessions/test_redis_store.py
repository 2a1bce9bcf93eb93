"""Sessions in a real Redis."""

from __future__ import annotations

import asyncio

import pytest
import redis.asyncio

from shoal.router.errors import FieldError, SessionExistsError, SessionsAwayError, TurnConflictError, TurnReservedError
from shoal.router.harmony.message import ChatMessage, Rendered
from shoal.router.sessions.redis_store import RedisSessions, connect, index_key, session_key
from shoal.router.sessions.store import NewSession, StoredItem, Turn

HELLO = ChatMessage("user", "hé 🙂", rendered=Rendered((1, 2, 3)))
CALL = ChatMessage(
    "assistant", "{}", "commentary", "functions.f", content_type="json", rendered=Rendered((4, 5, 6), 1, 3)
)


@pytest.fixture
def store(client: redis.asyncio.Redis) -> RedisSessions:
    """The store under test."""
    return RedisSessions(client)


def turn(number: int, *items: ChatMessage, writer: str = "w", ttl: int = 60) -> Turn:
    """A turn of the given messages."""
    return Turn(number, items or (HELLO,), writer, ttl, "2026-11-20")


async def test_a_turn_is_read_as_it_was_written(store: RedisSessions) -> None:
    """Every field of a message, its ids and their origin survive."""
    await store.append("t", "s", turn(0, HELLO, CALL))
    session = await store.load("t", "s")

    assert session is not None
    assert [item.message for item in session.items] == [HELLO, CALL]
    assert (session.info.next_turn, session.info.date) == (1, "2026-11-20")
    assert session.info.created_at == session.info.updated_at > 1.7e9
    assert 58 <= session.info.expires_in <= 60


async def test_what_was_never_made_is_none(store: RedisSessions) -> None:
    """Absence is not an error."""
    assert await store.load("t", "s") is None


@pytest.mark.parametrize(("number", "found"), [(0, 1), (2, 1), (7, 1)])
async def test_only_the_next_turn_is_taken(number: int, found: int, store: RedisSessions) -> None:
    """A turn that was, or is not yet, is refused with the turn that the session is at, and changes nothing."""
    await store.append("t", "s", turn(0, writer="a"))
    with pytest.raises(TurnConflictError) as caught:
        await store.append("t", "s", turn(number, writer="b"))
    session = await store.load("t", "s")

    assert caught.value.found == found
    assert session is not None
    assert len(session.items) == 1


async def test_of_many_writers_one_wins(store: RedisSessions) -> None:
    """Twenty appends of one turn at once: one is stored, nineteen are told that they lost."""
    appends = (store.append("t", "s", turn(0, writer=f"w{i}")) for i in range(20))
    outcomes = await asyncio.gather(*appends, return_exceptions=True)
    session = await store.load("t", "s")

    assert sum(isinstance(outcome, TurnConflictError) for outcome in outcomes) == 19
    assert session is not None
    assert len(session.items) == 1


async def test_the_same_append_twice_counts_once(store: RedisSessions) -> None:
    """A writer that lost the answer may send its turn again."""
    for _ in range(2):
        await store.append("t", "s", turn(0))
    session = await store.load("t", "s")

    assert session is not None
    assert (session.info.next_turn, len(session.items)) == (1, 1)


async def test_a_session_expires_as_a_whole(store: RedisSessions, client: redis.asyncio.Redis) -> None:
    """Both keys have the time to live that the turn asked for, and a new turn sets it anew."""
    await store.append("t", "s", turn(0, ttl=10))
    await store.append("t", "s", turn(1, ttl=1000))
    key = session_key("t", "s")
    ttls = [await client.ttl(name) for name in (key, f"{key}:items")]

    assert all(990 <= ttl <= 1000 for ttl in ttls)


async def test_an_idle_session_is_gone(store: RedisSessions) -> None:
    """After its time a session is absent, and its next turn is the first."""
    await store.append("t", "s", turn(0, ttl=1))
    await asyncio.sleep(1.1)

    assert await store.load("t", "s") is None
    with pytest.raises(TurnConflictError):
        await store.append("t", "s", turn(1))
    assert (await store.page("t", 10, "")) == ([], "")
    await store.append("t", "s", turn(0, writer="again"))


async def test_reading_does_not_prolong(store: RedisSessions, client: redis.asyncio.Redis) -> None:
    """Only turns keep a session alive."""
    await store.append("t", "s", turn(0, ttl=1000))
    await client.expire(session_key("t", "s"), 5)
    session = await store.load("t", "s")

    assert session is not None
    assert session.info.expires_in <= 5


async def test_tenants_do_not_meet(store: RedisSessions) -> None:
    """The same name under another tenant, or a name made to look like another's key, is another session."""
    await store.append("a", "b:c", turn(0))

    assert await store.load("b", "b:c") is None
    assert await store.load("a:b", "c") is None
    assert not await store.delete("a:b", "c")
    assert (await store.page("a:b", 10, "")) == ([], "")


@pytest.mark.parametrize("name", ["s", "x}y{z", "a:b", "ü/%25", "*", "s:items"])
async def test_keys_carry_the_tenant_and_one_hash_tag(
    name: str, store: RedisSessions, client: redis.asyncio.Redis
) -> None:
    """Whatever the name, there are two session keys with one tag and one index key, all with the tenant."""
    await store.append("ten}ant", name, turn(0))
    found: list[bytes] = await client.keys("*")  # type: ignore[assignment]  # no decoding was asked for
    keys = sorted(key.decode() for key in found)
    tags = {key.partition("{")[2].partition("}")[0] for key in keys if key.startswith("shoal:session:")}

    assert keys == sorted([session_key("ten}ant", name), f"{session_key('ten}ant', name)}:items", index_key("ten}ant")])
    assert len(tags) == 1
    assert all("ten%7Dant" in key for key in keys)


async def test_delete_leaves_nothing(store: RedisSessions, client: redis.asyncio.Redis) -> None:
    """A deleted session leaves no key behind; deleting it again finds nothing."""
    await store.append("t", "s", turn(0))

    assert await store.delete("t", "s")
    assert await client.keys("*") == []
    assert not await store.delete("t", "s")


async def test_pages_are_newest_first_and_complete(store: RedisSessions) -> None:
    """Walking the pages gives every session once; a new turn moves its session to the front."""
    for i in range(5):
        await store.append("t", f"s{i}", turn(0))
    await store.append("t", "s1", turn(1))
    names, token, pages = [], "", 0
    while True:
        infos, token = await store.page("t", 2, token)
        names += [info.session_id for info in infos]
        pages += 1
        if not token:
            break

    assert names == ["s1", "s4", "s3", "s2", "s0"]
    assert pages == 3


async def test_a_foreign_page_token_is_refused(store: RedisSessions) -> None:
    """A token that was not given out is the caller's mistake."""
    with pytest.raises(FieldError, match="page_token"):
        await store.page("t", 2, "%%%")


async def test_the_index_does_not_outlive_its_sessions(store: RedisSessions, client: redis.asyncio.Redis) -> None:
    """The index expires with the longest-lived session in it."""
    await store.append("t", "long", turn(0, ttl=1000))
    await store.append("t", "short", turn(0, ttl=10))

    assert 990 <= await client.ttl(index_key("t")) <= 1000


async def test_the_index_forgets_who_cannot_be_there_though_nobody_lists(
    client: redis.asyncio.Redis,
) -> None:
    """A tenant that goes on making sessions and never asks for them has no more names than living sessions."""
    store = RedisSessions(client, longest_seconds=1)
    await store.append("t", "gone", turn(0, ttl=1))
    await asyncio.sleep(1.1)
    await store.append("t", "new", turn(0, ttl=1))

    assert await client.zrange(index_key("t"), 0, -1) == [b"new"]


async def test_of_many_who_reserve_one_gets_the_turn(store: RedisSessions) -> None:
    """Twenty at once: one may write, nineteen are told to wait, and cannot append either."""
    tries = (store.reserve("t", "s", f"w{i}", 10) for i in range(20))
    outcomes = await asyncio.gather(*tries, return_exceptions=True)
    winner = outcomes.index(None)
    with pytest.raises(TurnConflictError):
        await store.append("t", "s", turn(0, writer=f"w{(winner + 1) % 20}"))
    await store.append("t", "s", turn(0, writer=f"w{winner}"))

    assert 19 == sum(isinstance(outcome, TurnReservedError) for outcome in outcomes)
    assert await store.reserve("t", "s", "next", 10) is not None


async def test_a_silent_writer_loses_its_turn(store: RedisSessions) -> None:
    """When the lease ran out another may write, and the late one is refused even if it comes first."""
    await store.reserve("t", "s", "late", 0.05)
    await asyncio.sleep(0.1)
    await store.reserve("t", "s", "next", 10)

    assert not await store.hold("t", "s", "late", 10)
    with pytest.raises(TurnConflictError):
        await store.append("t", "s", turn(0, writer="late"))
    await store.append("t", "s", turn(0, writer="next"))


async def test_a_turn_given_back_is_free(store: RedisSessions) -> None:
    """Who gives up lets the next one begin at once."""
    await store.reserve("t", "s", "first", 10)
    assert await store.hold("t", "s", "first", 0)

    assert await store.reserve("t", "s", "second", 10) is None


async def test_the_writer_of_a_turn_may_come_back(store: RedisSessions) -> None:
    """Who stored a turn and did not hear of it reserves it again by its number, and appends it without effect."""
    await store.reserve("t", "s", "w", 10, expected_turn=0)
    await store.append("t", "s", turn(0, writer="w"))
    session = await store.reserve("t", "s", "w", 10, expected_turn=0)
    await store.append("t", "s", turn(0, writer="w"))

    assert session is not None
    assert (1, "w") == (session.info.next_turn, session.info.writer)


async def test_a_session_deleted_under_its_turn_is_not_written(store: RedisSessions) -> None:
    """The first turn of a deleted session does not bring it back; a new one may."""
    await store.append("t", "s", turn(0, writer="a"))
    await store.reserve("t", "s", "b", 10)
    await store.delete("t", "s")
    with pytest.raises(TurnConflictError):
        await store.append("t", "s", turn(0, writer="b"))
    assert await store.reserve("t", "s", "c", 10) is None
    await store.append("t", "s", turn(0, writer="c"))


async def test_a_new_session_is_made_once(store: RedisSessions) -> None:
    """With what it begins with; the same call again counts once, another's is refused."""
    new = NewSession(60, "w", "2026-11-20", 2, (StoredItem(HELLO, 0, "x"), StoredItem(CALL, 1, "y")), "[]")
    for _ in range(2):
        await store.create("t", "s", new)
    with pytest.raises(SessionExistsError):
        await store.create("t", "s", NewSession(60, "other", "2026-11-20"))
    session = await store.load("t", "s")

    assert session is not None
    assert new.items == session.items
    assert (2, "[]", 60) == (session.info.next_turn, session.info.tools, session.info.ttl_seconds)


async def test_everything_says_when_redis_is_away() -> None:
    """Without a server every method raises the same error, with a hint, within its bounds."""
    client = connect("unix:///nowhere/redis.sock")
    store = RedisSessions(client)
    for attempt in (
        store.load("t", "s"),
        store.append("t", "s", turn(0)),
        store.reserve("t", "s", "w", 1),
        store.hold("t", "s", "w", 1),
        store.create("t", "s", NewSession(60, "w", "2026-11-20")),
        store.page("t", 1, ""),
        store.delete("t", "s"),
    ):
        with pytest.raises(SessionsAwayError) as caught:
            await asyncio.wait_for(attempt, 3)
        assert caught.value.retry_after_ms
    await client.aclose()
