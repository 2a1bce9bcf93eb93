"""Idempotency keys, over real sockets and a real Redis."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import grpc.aio
import pytest

from shoal.proto.v1 import inference_pb2 as api
from shoal.proto.v1 import worker_pb2 as pb
from shoal.router.fleet.scripted_worker import Action, Say, Script, saying
from shoal.router.inference.once import digest_of
from shoal.router.tokenizer import Tokenizer
from tests.router.byte_tokenizer import ids_of
from tests.router.conftest import Cluster, StartCluster
from tests.router.http.asking import ask
from tests.router.inference.test_resume import plain
from tests.router.talking import answer_of, events_of, failed, trailing, user

ANSWER = "<|channel|>analysis<|message|>hm<|end|><|start|>assistant<|channel|>final<|message|>4 é<|return|>"


@pytest.fixture
def answering(tokenizer: Tokenizer) -> Script:
    """Goes on from where it was told that it is."""

    async def script(submit: pb.Submit) -> AsyncIterator[Action]:
        ids = ids_of(tokenizer, ANSWER)
        for index in range(submit.start_offset, len(ids)):
            last = index == len(ids) - 1
            yield Say((ids[index],), pb.SEQUENCE_FINISH_STOP_TOKEN if last else pb.SEQUENCE_FINISH_UNSPECIFIED)
            await asyncio.sleep(0.002)

    return script


@pytest.fixture
async def cluster(start_cluster: StartCluster, answering: Script, redis_url: str) -> Cluster:
    """One worker, sessions and a journal."""
    return await start_cluster(answering, redis_url=redis_url, lease_seconds=0.5)


def asked(text: str = "2+2?", **fields: Any) -> api.ChatRequest:
    """A turn of a session, with a key."""
    return user(text, session_id="s", idempotency_key="k", **fields)


async def turns(cluster: Cluster) -> int:
    """How many the session has."""
    return (await cluster.front.sessions.GetSession(api.GetSessionRequest(session_id="s"))).session.next_turn


async def test_sent_again_it_is_told_again(cluster: Cluster) -> None:
    """The same events, from the first to `done`; nothing is generated and no turn is added."""
    first = await events_of(cluster.front.inference.Chat(asked()))
    again = await events_of(cluster.front.inference.Chat(asked(request_id="another name")))

    assert plain(first) == plain(again)
    assert again[-1].HasField("done")
    assert await turns(cluster) == 1
    assert len(cluster.worker.submits) == 1


async def test_raw_generation_is_told_again(cluster: Cluster) -> None:
    """So is what has no session."""
    request = api.GenerateRequest(text="x", idempotency_key="k")
    first = await events_of(cluster.front.inference.Generate(request))

    assert plain(first) == plain(await events_of(cluster.front.inference.Generate(request)))
    assert len(cluster.worker.submits) == 1


async def test_a_client_that_lost_its_stream_sends_it_again(cluster: Cluster) -> None:
    """It hears the whole answer, and the session has one turn."""
    call = cluster.front.inference.Chat(asked())
    async for event in call:
        if event.HasField("text"):
            call.cancel()
            break
    again = await events_of(cluster.front.inference.Chat(asked()))

    assert answer_of(again) == "4 é"
    assert await turns(cluster) == 1


async def test_many_at_once_make_one_turn(cluster: Cluster) -> None:
    """Whichever of them are told the answer are told the same; the others are told that another goes on."""
    calls = [events_of(cluster.front.inference.Chat(asked())) for _ in range(8)]
    outcomes = await asyncio.gather(*calls, return_exceptions=True)
    errors = [outcome for outcome in outcomes if isinstance(outcome, grpc.aio.AioRpcError)]
    answers = {answer_of(outcome) for outcome in outcomes if isinstance(outcome, list)}

    assert {grpc.StatusCode.ABORTED} >= {error.code() for error in errors}
    assert answers <= {"4 é"}
    assert answer_of(await events_of(cluster.front.inference.Chat(asked()))) == "4 é"
    assert await turns(cluster) == 1


async def test_a_key_stands_for_one_request(cluster: Cluster) -> None:
    """With other words it is refused, and the field is named."""
    await events_of(cluster.front.inference.Chat(asked()))
    _, error = await failed(cluster.front.inference.Chat(asked("3+3?")))

    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "idempotency_key" in (error.details() or "")
    assert await turns(cluster) == 1


async def test_what_was_refused_may_be_mended(cluster: Cluster) -> None:
    """A request that came to nothing does not use its key up."""
    await failed(cluster.front.inference.Chat(asked(limits=api.Limits(max_tokens=0))))
    assert answer_of(await events_of(cluster.front.inference.Chat(asked()))) == "4 é"


async def test_the_key_of_a_router_that_died_at_once_is_freed(cluster: Cluster) -> None:
    """Between the claim and the acceptance: for the time of a lease the retry has to wait, then it is the request."""
    claims = cluster.front.router.redis.claims
    assert claims is not None
    await claims.claim("default", "k", "of-the-dead", digest_of(asked()), 60)
    _, error = await failed(cluster.front.inference.Chat(asked()))
    assert trailing(error)["shoal-reason"] == "request_held"
    assert int(trailing(error)["retry-after-ms"]) > 0
    await asyncio.sleep(0.6)

    assert answer_of(await events_of(cluster.front.inference.Chat(asked()))) == "4 é"


async def test_tenants_have_keys_of_their_own(cluster: Cluster) -> None:
    """The same key of another tenant is another key."""
    claims = cluster.front.router.redis.claims
    assert claims is not None
    await claims.claim("other", "k", "theirs", "digest", 60)

    assert answer_of(await events_of(cluster.front.inference.Chat(asked()))) == "4 é"
    assert (await claims.claim("other", "k", "mine", "digest", 60)).work_id == "theirs"


async def test_without_redis_a_key_cannot_be_honoured(start_cluster: StartCluster, answering: Script) -> None:
    """UNAVAILABLE instead of a promise that cannot be kept."""
    for url in ("", "unix:///nowhere/redis.sock"):
        cluster = await start_cluster(answering, redis_url=url)
        _, error = await failed(cluster.front.inference.Chat(user("x", idempotency_key="k")))
        assert error.code() is grpc.StatusCode.UNAVAILABLE
        assert cluster.worker.submits == []


async def test_http_has_the_usual_header(start_cluster: StartCluster, tokenizer: Tokenizer, redis_url: str) -> None:
    """`Idempotency-Key` on chat completions: the second answer says the same and costs nothing."""
    cluster = await start_cluster(saying(ids_of(tokenizer, ANSWER)), redis_url=redis_url, http_port=0)
    body = {"model": cluster.front.router._config.model, "messages": [{"role": "user", "content": "2+2?"}]}
    address = cluster.front.listening.http
    answers = [await ask(address, "/v1/chat/completions", body, Idempotency_Key="k") for _ in range(2)]

    assert [200, 200] == [answer.status for answer in answers]
    assert all("4 é" in answer.text or "4 \\u00e9" in answer.text for answer in answers)
    assert len(cluster.worker.submits) == 1
