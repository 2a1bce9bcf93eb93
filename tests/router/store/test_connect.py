"""Clients from URLs, against real servers of every kind."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio.cluster import RedisCluster

from shoal.router.errors import SessionsAwayError
from shoal.router.harmony.message import ChatMessage, Rendered
from shoal.router.http.responses.records import Record, Records
from shoal.router.journal.journal import Journal
from shoal.router.journal.lease import JournalLimits
from shoal.router.sessions.redis_store import RedisSessions
from shoal.router.sessions.reservation import Patience, reserved
from shoal.router.sessions.store import Session, Turn
from shoal.router.store.connect import RedisUrlError, check, connect, read_several
from shoal.router.store.ready import RedisNotReadyError, require_ready
from tests.router.journal.conftest import record, tokens
from tests.router.store.servers import cluster, holds_soon, started, watched

HELLO = ChatMessage("user", "hello", rendered=Rendered((1, 2, 3)))


def turn(number: int, writer: str = "w") -> Turn:
    """A turn with one message."""
    return Turn(number, (HELLO,), writer, 60, "2026-11-20")


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        ("http://h", "must begin with"),
        ("redis+sentinel://h:1", "name the service"),
        ("redis+sentinel://h:1/main/x", "must be a number"),
        ("redis+cluster://h:1/0", "path empty"),
        ("redis+cluster://", "at least one host"),
        ("redis+cluster://h:x", "list of host:port"),
        ("redis+cluster://h?db=3", "option 'db'"),
        ("redis+proxy://h", "must begin with"),
        ("redis://h:99999999", "cannot be read"),
        ("redis://h/0?socket_timeout=soon", "cannot be read"),
    ],
)
def test_a_url_that_cannot_be_used_is_told(url: str, problem: str) -> None:
    """What is wrong with it, and never its password."""
    secret = url.replace("://", "://u:hunter2@")
    with pytest.raises(RedisUrlError, match=problem) as caught:
        check(secret)
    assert "hunter2" not in str(caught.value)


def test_the_parts_of_a_url_with_several_hosts() -> None:
    """Credentials are decoded; ports, database and options have defaults."""
    found = read_several("rediss+sentinel://u%40x:p%3A@a,b:7/main/2?ssl_ca_certs=/ca&sentinel_password=s")
    assert found is not None

    assert (("a", 26379), ("b", 7)) == found.nodes
    assert ("u@x", "p:", "main", 2, True) == (found.username, found.password, found.service, found.db, found.tls)
    assert {"ssl_ca_certs": "/ca", "sentinel_password": "s"} == found.options
    assert "p:" not in repr(found)


async def test_a_cluster_holds_everything(tmp_path: Path) -> None:
    """Sessions, journals and responses of many names, so of every node: nothing spans hash tags. A node that is away
    takes its own with it and no others."""
    with cluster(tmp_path) as servers:
        hosts = ",".join(f"127.0.0.1:{server.port}" for server in servers)
        client = connect(f"redis+cluster://{hosts}")
        assert isinstance(client, RedisCluster)
        await require_ready(client, 5)
        sessions, journal, records = RedisSessions(client), Journal(client, JournalLimits()), Records(client, 60)
        names = [f"s{i}" for i in range(24)]
        leases = []
        for name in names:
            assert await sessions.reserve("t", name, "w", 10) is None
            await sessions.append("t", name, turn(0))
            leases.append(await journal.accept(record(name, request_id=f"my-{name}"), "ours", seconds=60))
            await records.save("t", Record({"id": name, "status": "completed"}, name))
            assert await records.claim_next("t", name, "x")
        outcomes = await journal.append_all([(lease, [tokens(0, 1), tokens(1, 2)]) for lease in leases])
        infos, _ = await sessions.page("t", 100, "")
        views = [await journal.read("t", await journal.find("t", f"my-{name}")) for name in names]
        sizes = [server.client().dbsize() for server in servers]

        assert [None] * 24 == outcomes
        assert set(names) == {info.session_id for info in infos}
        assert [[1, 2]] * 24 == [[id_ for entry in view.tokens for id_ in entry.ids] for view in views if view]
        assert all(size > 10 for size in sizes)
        for name in names[:3]:
            assert await sessions.delete("t", name)
            assert await records.delete("t", name)
            await journal.forget("t", name)
        servers[0].kill()
        loads = await asyncio.gather(*(sessions.load("t", name) for name in names[3:]), return_exceptions=True)
        assert {Session, SessionsAwayError} == {type(outcome) for outcome in loads}
        await client.aclose()


async def test_a_failover_loses_no_session(tmp_path: Path) -> None:
    """The primary is killed: the sentinel promotes the replica, and what was acknowledged and replicated is there, over
    the same client, within a few seconds."""
    with watched(tmp_path, "p@ss:word") as service:
        client = connect(f"redis+sentinel://:p%40ss%3Aword@127.0.0.1:{service.sentinel.port}/main")
        await require_ready(client, 5)
        store = RedisSessions(client)
        for i in range(20):
            await store.append("t", f"s{i}", turn(0))
        replicated = service.primary.ask("WAIT", 1, 2000)
        assert replicated == 1
        service.primary.kill()
        began, stored = time.monotonic(), False
        while not stored:
            try:
                await store.append("t", "new", turn(0))
                stored = True
            except SessionsAwayError:
                assert time.monotonic() - began < 20, "no failover"
        sessions = [await store.load("t", f"s{i}") for i in range(20)]
        print(f"writes again {time.monotonic() - began:.2f} s after the kill")

        assert all(sessions)
        await client.aclose()


async def test_a_primary_that_was_replaced_acknowledges_nothing(tmp_path: Path) -> None:
    """It stops for a while and is taken for dead; while it still believes to be the primary, a late writer that reaches
    it is told that nothing was stored. The same write, tried again where the sentinel says, counts once."""
    with watched(tmp_path, "p@ss:word") as service:
        url = f"redis+sentinel://:p%40ss%3Aword@127.0.0.1:{service.sentinel.port}/main"
        client, late = connect(url), connect(f"redis://:p%40ss%3Aword@127.0.0.1:{service.primary.port}")
        store, stale = RedisSessions(client, replicas=1), RedisSessions(late, replicas=1)
        await stale.append("t", "s", turn(0))
        service.primary.pause()
        holds_soon(lambda: service.replica.ask("ROLE")[0] == b"master")
        service.primary.go_on()
        assert service.primary.ask("ROLE")[0] == b"master", "it should not know yet"
        with pytest.raises(SessionsAwayError, match="no replica"):
            await stale.append("t", "s", turn(1, "late"))
        holds_soon(lambda: service.primary.ask("ROLE")[0] == b"slave", seconds=30)
        patience = Patience(append=20.0)
        async with reserved(store, "t", "s", "late", patience=patience) as reservation:
            await reservation.append(turn(1, "late"))
        session = await store.load("t", "s")

        assert session is not None
        assert [0, 1] == [item.turn for item in session.items]
        await client.aclose()
        await late.aclose()


async def test_a_turn_that_no_replica_has_is_tried_again(tmp_path: Path) -> None:
    """While the replica is silent nothing counts as stored, and the turn is there once when it does."""
    with watched(tmp_path, "p") as service:
        client = connect(f"redis+sentinel://:p@127.0.0.1:{service.sentinel.port}/main")
        store = RedisSessions(client, replicas=1)
        await store.append("t", "s", turn(0))
        service.replica.pause()
        with pytest.raises(SessionsAwayError, match="no replica"):
            await store.append("t", "s", turn(1))
        with pytest.raises(SessionsAwayError, match="no replica"):
            await store.append("t", "s", turn(1))
        service.replica.go_on()
        await store.append("t", "s", turn(1))
        session = await store.load("t", "s")

        assert session is not None
        assert [0, 1] == [item.turn for item in session.items]
        await client.aclose()


async def test_a_user_of_the_servers_acl_is_enough(tmp_path: Path) -> None:
    """A user with the rights to shoal's keys alone serves; a wrong password is told at once, without showing it."""
    with started(tmp_path) as server:
        server.client().acl_setuser(
            "shoal", enabled=True, passwords=["+good"], keys=["shoal:*"], categories=["+@all", "-@admin"],
        )  # fmt: skip
        client = connect(f"redis://shoal:good@127.0.0.1:{server.port}")
        await require_ready(client, 5)
        store = RedisSessions(client)
        await store.append("t", "s", turn(0))
        assert await store.load("t", "s") is not None
        await client.aclose()
        wrong = connect(f"redis://shoal:hunter2@127.0.0.1:{server.port}")
        with pytest.raises(RedisNotReadyError, match="refuses our credentials") as caught:
            await require_ready(wrong, 5)
        assert "hunter2" not in str(caught.value)
        await wrong.aclose()


async def test_no_answer_is_told_after_a_while() -> None:
    """A start waits no longer than it was told to, and says what it waited for."""
    client = connect("redis://:hunter2@127.0.0.1:1")
    began = time.monotonic()
    with pytest.raises(RedisNotReadyError, match=r"does not answer .*waited 0\.3 s") as caught:
        await require_ready(client, 0.3)
    assert time.monotonic() - began < 5
    assert "hunter2" not in str(caught.value)
    await client.aclose()


async def test_a_full_server_is_told_as_full(tmp_path: Path) -> None:
    """Nothing is thrown away and nothing half-written: writing says that Redis is full, reading goes on."""
    with started(tmp_path, "--maxmemory", "3mb", "--maxmemory-policy", "noeviction") as server:
        client = connect(f"redis://127.0.0.1:{server.port}")
        store = RedisSessions(client)
        big = ChatMessage("user", "x" * 100_000, rendered=Rendered((1,)))
        stored = 0

        async def fill() -> None:
            nonlocal stored
            while stored < 100:
                await store.append("t", f"s{stored}", Turn(0, (big,), "w", 60, "2026-11-20"))
                stored += 1

        with pytest.raises(SessionsAwayError, match="Redis is full"):
            await fill()
        sessions = [await store.load("t", f"s{i}") for i in range(stored)]

        assert stored > 2
        assert all(session is not None and len(session.items) == 1 for session in sessions)
        assert await store.load("t", f"s{stored}") is None
        await client.aclose()


async def test_hundreds_of_commands_at_once_wait_for_a_connection(redis_url: str) -> None:
    """A burst is served with a bounded number of connections, and nobody is told that Redis is away."""
    client = connect(redis_url)
    store = RedisSessions(client)
    before: Any = await client.client_list()  # other tests' connections to the same server stay a while
    await asyncio.gather(*(store.append("t", f"s{i}", turn(0)) for i in range(300)))
    clients: Any = await client.client_list()

    assert len((await store.page("t", 1000, ""))[0]) == 300
    assert len(clients) - len(before) <= 130
    await client.aclose()
