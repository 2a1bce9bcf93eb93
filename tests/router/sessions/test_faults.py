"""Redis killed, away and back, under a router that goes on."""

from __future__ import annotations

import asyncio
import os
import shlex
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import grpc.aio
import pytest
from google.rpc import error_details_pb2

from shoal.cluster.embedded_redis import EmbeddedRedis, find_server
from shoal.proto.v1 import inference_pb2 as api
from shoal.proto.v1 import worker_pb2 as pb
from shoal.router.errors import SessionsAwayError
from shoal.router.fleet.scripted_worker import Action, Say, saying
from shoal.router.harmony.message import ChatMessage, Rendered
from shoal.router.sessions.redis_store import RedisSessions
from shoal.router.sessions.store import Turn
from shoal.router.store.connect import connect
from shoal.router.store.ready import require_ready
from shoal.router.tokenizer import Tokenizer
from shoal.wire.details import read_details
from tests.chaos.killable import KillableRedis
from tests.router.byte_tokenizer import ids_of
from tests.router.conftest import StartCluster
from tests.router.store.servers import free_port, started
from tests.router.talking import answer_of, events_of, failed, until, user
from tests.router.test_server import start_process

ANSWER = "<|channel|>final<|message|>yes<|return|>"


async def test_a_stream_outlives_redis(start_cluster: StartCluster, tokenizer: Tokenizer, tmp_path: Path) -> None:
    """Killed in the middle of a session's turn: the words go on, `done` waits until the turn is stored. Meanwhile
    stateless requests are served and say that they cannot be resumed, session requests are UNAVAILABLE with a hint;
    then all is as before, without a restart of the router, and nothing that was acknowledged is lost."""
    ids = ids_of(tokenizer, ANSWER)
    go_on, killed = asyncio.Event(), asyncio.Event()

    async def script(submit: pb.Submit) -> AsyncIterator[Action]:
        yield Say(tuple(ids[:-1]))
        if killed.is_set():
            await go_on.wait()
        yield Say((ids[-1],), pb.SEQUENCE_FINISH_STOP_TOKEN)

    redis = KillableRedis(tmp_path / "redis")
    await asyncio.to_thread(redis.start)
    try:
        cluster = await start_cluster(script, redis_url=redis.url)
        inference, sessions = cluster.front.inference, cluster.front.sessions
        await events_of(inference.Chat(user("a", session_id="s")))
        killed.set()
        call = inference.Chat(user("b", session_id="s"))
        heard: list[api.ChatResponse] = []

        async def listen() -> None:
            async for event in call:
                heard.append(event)

        listening = asyncio.create_task(listen())
        await until(lambda: any(event.HasField("text") for event in heard))
        redis.kill()
        go_on.set()
        stateless = await events_of(inference.Chat(user("c")))
        _, error = await failed(inference.Chat(user("d", session_id="other")))
        hint = read_details(error.trailing_metadata(), error_details_pb2.RetryInfo)
        with pytest.raises(grpc.aio.AioRpcError) as listed:
            await sessions.ListSessions(api.ListSessionsRequest())

        assert answer_of(stateless) == "yes"
        assert not stateless[0].started.resumable
        assert error.code() is listed.value.code() is grpc.StatusCode.UNAVAILABLE
        assert hint is not None
        assert hint.retry_delay.ToMilliseconds() > 0
        assert not listening.done(), "done was told before the turn was stored"
        await asyncio.to_thread(redis.start)
        await asyncio.wait_for(listening, 20)
        stored = await sessions.GetSession(api.GetSessionRequest(session_id="s"))
        again = await events_of(inference.Chat(user("e", session_id="s")))

        assert heard[-1].HasField("done")
        assert ["a", "yes", "b", "yes"] == [item.message.content for item in stored.items]
        assert (again[0].started.turn, again[0].started.resumable) == (2, True)
    finally:
        await asyncio.to_thread(redis.stop)


async def test_no_acknowledged_turn_is_lost_to_kills(tmp_path: Path) -> None:
    """Our own Redis is killed three times under sixteen writers: whatever `append` returned for is there, once."""
    said = ChatMessage("user", "x", rendered=Rendered((1, 2)))
    stored: dict[str, int] = {}
    over = asyncio.Event()
    with EmbeddedRedis(tmp_path / "redis") as server:
        client = connect(server.url)
        store = RedisSessions(client)

        async def write(name: str) -> None:
            while not over.is_set():
                number = stored.get(name, 0)
                try:
                    await store.append("t", name, Turn(number, (said,), f"w{number}", 600, "2026-11-20"))
                    stored[name] = number + 1
                except SessionsAwayError:
                    await asyncio.sleep(0.01)

        writers = [asyncio.create_task(write(f"s{i}")) for i in range(16)]
        for _ in range(3):
            await asyncio.sleep(0.2)
            before = server.pid
            if before is not None:
                os.kill(before, signal.SIGKILL)
            await until(lambda before=before: server.pid not in (None, before), seconds=20)  # type: ignore[misc]  # a default holds the loop's value
        await asyncio.sleep(0.3)
        over.set()
        await asyncio.gather(*writers)
        for name, count in stored.items():
            session = await store.load("t", name)
            assert session is not None, f"{name} is lost"
            turns = [item.turn for item in session.items]
            assert turns == list(range(len(turns)))
            assert count <= len(turns) <= count + 1  # the last may be stored without its writer having heard of it
        assert len(stored) == 16
        await client.aclose()


async def test_a_full_disk_loses_nothing_that_was_acknowledged(tmp_path: Path) -> None:
    """A server that may not write another byte ends; started again with room, it has every turn that was told to be
    stored."""
    folder, port = tmp_path / "redis", free_port()
    folder.mkdir()
    options = ["--port", str(port), "--bind", "127.0.0.1", "--dir", str(folder), "--save", "", "--appendonly", "yes"]
    command = shlex.join([str(find_server()), *options, "--appendfsync", "always"])
    with (folder / "log").open("ab") as log:
        limited = ["bash", "-c", f"ulimit -f 256; exec {command}"]
        process = await asyncio.create_subprocess_exec(*limited, stdout=log, stderr=log)
    client = connect(f"redis://127.0.0.1:{port}")
    await require_ready(client, 20)
    store = RedisSessions(client)
    said = ChatMessage("user", "x" * 5_000, rendered=Rendered((1, 2)))
    stored = 0

    async def fill() -> None:
        nonlocal stored
        while True:
            await store.append("t", f"s{stored}", Turn(0, (said,), "w", 600, "2026-11-20"))
            stored += 1

    with pytest.raises(SessionsAwayError):
        await fill()
    await asyncio.wait_for(process.wait(), 20)
    with started(folder, "--appendonly", "yes", "--appendfsync", "always", port=port):
        sessions = [await store.load("t", f"s{n}") for n in range(stored)]
        await store.append("t", "after", Turn(0, (said,), "w", 600, "2026-11-20"))
        await client.aclose()

    assert stored > 10
    assert all(session is not None and len(session.items) == 1 for session in sessions)


async def test_a_redis_without_memory_stops_sessions_alone(
    start_cluster: StartCluster, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    """Running streams and stateless requests go on; a session's turn is UNAVAILABLE with a hint, nothing of it is
    there; with memory again all is as before, without a restart."""
    with started(tmp_path, "--maxmemory", "100mb", "--maxmemory-policy", "noeviction") as server:
        cluster = await start_cluster(
            saying(ids_of(tokenizer, ANSWER), pause=0.02), redis_url=f"redis://127.0.0.1:{server.port}",
            session_patience_seconds=0.3,
        )  # fmt: skip
        inference = cluster.front.inference
        await events_of(inference.Chat(user("a", session_id="s")))
        running = asyncio.create_task(events_of(inference.Chat(user("b"))))
        await until(lambda: bool(cluster.worker.running))
        server.ask("CONFIG", "SET", "maxmemory", "1mb")
        _, error = await failed(inference.Chat(user("c", session_id="s")))
        hint = read_details(error.trailing_metadata(), error_details_pb2.RetryInfo)
        stateless = await events_of(inference.Chat(user("d")))
        kept = await cluster.front.sessions.GetSession(api.GetSessionRequest(session_id="s"))
        server.ask("CONFIG", "SET", "maxmemory", "100mb")
        again = await events_of(inference.Chat(user("e", session_id="s")))

        assert answer_of(await running) == answer_of(stateless) == "yes"
        assert error.code() is grpc.StatusCode.UNAVAILABLE
        assert "full" in (error.details() or "")
        assert hint is not None
        assert hint.retry_delay.ToMilliseconds() > 0
        assert [item.message.content for item in kept.items] == ["a", "yes"]
        assert again[0].started.turn == 1


async def test_a_router_without_its_redis_does_not_start(tmp_path: Path, model_dir: Path) -> None:
    """It waits as long as it was told to, says what is missing without showing the password, and exits with 2."""
    settings = {"redis_url": "redis://:hunter2@127.0.0.1:1", "redis_wait_seconds": 0.2}
    process = await start_process(tmp_path, model_dir=str(model_dir), **settings)
    printed, told = await asyncio.wait_for(process.communicate(), 60)

    assert process.returncode == 2
    assert b"router.redis_url" in told
    assert b"does not answer" in told
    assert b"hunter2" not in printed + told


async def test_ten_megabytes_are_refused_and_leave_nothing(
    start_cluster: StartCluster, tokenizer: Tokenizer, redis_url: str
) -> None:
    """A message of 10 MB gets one typed error; its session is neither made nor held."""
    cluster = await start_cluster(saying(ids_of(tokenizer, ANSWER)), redis_url=redis_url)
    _, error = await failed(cluster.front.inference.Chat(user("x" * 10_000_000, session_id="s")))
    events = await events_of(cluster.front.inference.Chat(user("a", session_id="s")))

    assert error.code() in (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.RESOURCE_EXHAUSTED)
    assert events[0].started.turn == 0
