"""Whole routers on a Redis Cluster: no part of one needs all of Redis on one server."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from shoal.proto.v1 import inference_pb2 as api
from shoal.router.access.config import AccessConfig
from shoal.router.access.key_store import RedisKeys
from shoal.router.access.register import Register
from shoal.router.cache.prefixes import Prefixes, names_of
from shoal.router.cache.remembering import WORKER
from shoal.router.fleet.scripted_worker import saying
from shoal.router.limits.config import LimitsConfig
from shoal.router.store.connect import connect
from shoal.router.store.ready import RedisNotReadyError, require_ready
from shoal.router.tokenizer import Tokenizer
from tests.router.byte_tokenizer import ids_of
from tests.router.conftest import StartCluster, StartRouter
from tests.router.http.asking import ask
from tests.router.inference.test_resume import plain
from tests.router.store.servers import cluster as redis_cluster
from tests.router.talking import answer_of, events_of, failed, trailing, until, user

ANSWER = "<|channel|>final<|message|>yes<|return|>"


async def test_everything_works_on_a_cluster(
    start_cluster: StartCluster,
    start_router: StartRouter,
    tokenizer: Tokenizer,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Keys, quotas, sessions, forks, pages, idempotency, resuming, responses in a conversation and in the background,
    known answers, prefixes, and deletion: with two routers, and keys that lie on three servers."""
    policies = tmp_path / "tenants.toml"
    policies.write_text("[acme]\nresponse_cache = true\nrequests_per_minute = 60\nconcurrent = 20\n")
    with redis_cluster(tmp_path / "redis") as servers:
        url = f"redis+cluster://127.0.0.1:{servers[0].port}"
        client = connect(url)
        _, shown = await Register(RedisKeys(client), lambda: 1e9).create("acme", "user")
        settings: dict[str, Any] = {
            "redis_url": url, "http_port": 0, "model_name": "model", "share_prefixes": True,
            "limits": LimitsConfig(enforced=True, tenants_file=str(policies)),
            "access": AccessConfig(required=True, keys_in_redis=True),
        }  # fmt: skip
        cluster = await start_cluster(saying(ids_of(tokenizer, ANSWER)), **settings)
        other = await start_router(workers=(cluster.worker.address,), **settings)
        fronts: list[Any] = [cluster.front, other]
        await until(lambda: len(other.router.pool.eligible()) == 1)
        login = (("authorization", f"Bearer {shown}"),)

        def chat(turn: int, text: str, **fields: Any) -> Any:
            return fronts[turn % 2].inference.Chat(user(text, **fields), metadata=login)

        for turn in range(4):
            events = await events_of(chat(turn, f"turn {turn}", session_id="s", expected_turn=turn))
            assert (answer_of(events), events[0].started.resumable) == ("yes", True)
        fork = api.ForkSessionRequest(session_id="s", new_session_id="f", before_turn=2)
        assert (await other.sessions.ForkSession(fork, metadata=login)).session.next_turn == 2
        for number in range(6):
            await other.sessions.CreateSession(api.CreateSessionRequest(session_id=f"n{number}"), metadata=login)
        listed = await other.sessions.ListSessions(api.ListSessionsRequest(page_size=100), metadata=login)
        assert {info.session_id for info in listed.sessions} == {"s", "f", *(f"n{name}" for name in range(6))}
        once = [await events_of(chat(turn, "once", session_id="k", idempotency_key="k")) for turn in range(2)]
        assert plain(once[0]) == plain(once[1])
        again: Any = other.inference.Resume(api.ResumeRequest(request_id=once[0][0].started.request_id), metadata=login)
        assert plain([event.chat for event in await events_of(again)]) == plain(once[0])
        for turn in range(2):
            known = await events_of(chat(turn, "greedy", sampling=api.Sampling(temperature=0)))
        assert known[0].started.worker == WORKER

        bearer, previous, responses = f"Bearer {shown}", None, []
        for turn in range(3):
            body = {"model": "model", "input": "A", "previous_response_id": previous}
            told = await ask(fronts[turn % 2].listening.http, "/v1/responses", body, authorization=bearer)
            assert told.status == 200, told.text
            previous = told.json["id"]
            responses.append(previous)
        background = {"model": "model", "input": "B", "background": True, "stream": True}
        streamed = await ask(cluster.front.listening.http, "/v1/responses", background, authorization=bearer)
        assert streamed.events[-1]["response"]["status"] == "completed"
        long = "y" * 600
        await events_of(cluster.front.inference.Generate(api.GenerateRequest(text=long), metadata=login))
        names = names_of(tokenizer.encode(long), cluster.worker.submits[-1].cache_salt)
        found: Any = {}
        for _ in range(200):
            if found := await Prefixes(client).find(names):
                break
        assert list(found.values()) == [512]

        for _ in range(60):  # what is left of the minute
            try:
                await events_of(chat(0, "more"))
            except Exception:
                break
        _, error = await failed(chat(1, "more"))
        assert trailing(error)["shoal-reason"] == "quota"
        for made in ("s", "f"):
            await other.sessions.DeleteSession(api.DeleteSessionRequest(session_id=made), metadata=login)
        for response in responses:
            path = f"/v1/responses/{response}"
            assert (await ask(other.listening.http, path, method="DELETE", authorization=bearer)).status == 200
        sizes = [server.client().dbsize() for server in servers]
        await client.aclose()

    assert all(size > 3 for size in sizes)
    assert "CROSSSLOT" not in capfd.readouterr().err


async def test_a_cluster_that_is_gone_is_away_as_any_redis_is(
    start_cluster: StartCluster, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    """All of its servers are killed under a router with everything on: stateless requests go on, those with a session
    are UNAVAILABLE with a hint. With the cluster back so is everything, without a restart, and nothing is lost."""
    policies = tmp_path / "tenants.toml"
    policies.write_text("[default]\nresponse_cache = true\nconcurrent = 20\n")
    with redis_cluster(tmp_path / "redis") as servers:
        cluster = await start_cluster(
            saying(ids_of(tokenizer, ANSWER)),
            redis_url=f"redis+cluster://127.0.0.1:{servers[0].port}", share_prefixes=True, registry_poll=0.05,
            limits=LimitsConfig(enforced=True, tenants_file=str(policies)),
        )  # fmt: skip
        inference, sessions, router = cluster.front.inference, cluster.front.sessions, cluster.front.router
        await events_of(inference.Chat(user("a", session_id="s")))
        for server in servers:
            server.kill()
        stateless = await events_of(inference.Chat(user("b")))
        _, error = await failed(inference.Chat(user("c", session_id="s")))
        with pytest.raises(grpc.aio.AioRpcError) as listed:
            await sessions.ListSessions(api.ListSessionsRequest())
        age = router.membership.age
        for server in servers:
            server.start_again()
        await until(lambda: router.membership.age < age)
        again: list[api.ChatResponse] = []
        async with asyncio.timeout(30):
            while not again or not again[0].started.resumable:
                with contextlib.suppress(grpc.aio.AioRpcError):
                    again = await events_of(inference.Chat(user("d", session_id="s")))
        stored = await sessions.GetSession(api.GetSessionRequest(session_id="s"))

    assert (answer_of(stateless), stateless[0].started.resumable) == ("yes", False)
    assert error.code() is listed.value.code() is grpc.StatusCode.UNAVAILABLE
    assert int(trailing(error)["retry-after-ms"]) > 0
    assert ["a", "yes", "d", "yes"] == [item.message.content for item in stored.items][:4]


@pytest.mark.parametrize("url", ["redis+cluster://:hunter2@127.0.0.1:1", "redis+sentinel://:hunter2@127.0.0.1:1/main"])
async def test_a_cluster_that_was_never_there_is_told_at_the_start(url: str) -> None:
    """With the same words as for any other Redis, and without the password."""
    client = connect(url)
    with pytest.raises(RedisNotReadyError, match="does not answer") as caught:
        await require_ready(client, 0.3)
    assert "hunter2" not in str(caught.value)
    await client.aclose()
