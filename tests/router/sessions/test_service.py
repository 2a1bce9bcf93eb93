"""Get, list and delete sessions over a real socket."""

from __future__ import annotations

import grpc
import grpc.aio
import pytest

from shoal.proto.v1 import inference_pb2 as api
from shoal.router.fleet.scripted_worker import saying
from shoal.router.tokenizer import Tokenizer
from tests.router.byte_tokenizer import ids_of
from tests.router.conftest import Cluster, StartCluster, StartRouter
from tests.router.talking import events_of, user


@pytest.fixture
async def cluster(start_cluster: StartCluster, tokenizer: Tokenizer, redis_url: str) -> Cluster:
    """A worker that thinks and answers, and sessions."""
    written = "<|channel|>analysis<|message|>hm<|end|><|start|>assistant<|channel|>final<|message|>yes<|return|>"
    return await start_cluster(saying(ids_of(tokenizer, written)), redis_url=redis_url)


async def test_get_gives_everything_said(cluster: Cluster, tokenizer: Tokenizer) -> None:
    """A session has its messages in order, reasoning included, with turn and ids."""
    await events_of(cluster.front.inference.Chat(user("well?", session_id="s", session_ttl_seconds=50)))
    got = await cluster.front.sessions.GetSession(api.GetSessionRequest(session_id="s"))
    said = [(item.message.role, item.message.channel, item.message.content) for item in got.items]

    assert said == [
        (api.ROLE_USER, "", "well?"),
        (api.ROLE_ASSISTANT, "analysis", "hm"),
        (api.ROLE_ASSISTANT, "final", "yes"),
    ]
    assert [item.turn for item in got.items] == [0, 0, 0]
    assert tokenizer.decode(got.items[2].token_ids) == "<|start|>assistant<|channel|>final<|message|>yes<|end|>"
    assert (got.session.session_id, got.session.next_turn) == ("s", 1)
    assert 45 <= got.session.expires_in_seconds <= 50


async def test_list_pages_through_the_callers_sessions(cluster: Cluster) -> None:
    """Newest first, with a token while there is more."""
    for name in "abc":
        await events_of(cluster.front.inference.Chat(user("x", session_id=name)))
    first = await cluster.front.sessions.ListSessions(api.ListSessionsRequest(page_size=2))
    rest = await cluster.front.sessions.ListSessions(api.ListSessionsRequest(page_token=first.next_page_token))

    assert [info.session_id for info in first.sessions] == ["c", "b"]
    assert [info.session_id for info in rest.sessions] == ["a"]
    assert rest.next_page_token == ""


async def test_a_deleted_session_is_forgotten(cluster: Cluster) -> None:
    """After deletion the name is free: the model remembers nothing and the first turn is 0 again."""
    await events_of(cluster.front.inference.Chat(user("x", session_id="s")))
    await cluster.front.sessions.DeleteSession(api.DeleteSessionRequest(session_id="s"))
    events = await events_of(cluster.front.inference.Chat(user("y", session_id="s")))

    assert events[0].started.turn == 0
    assert len((await cluster.front.sessions.GetSession(api.GetSessionRequest(session_id="s"))).items) == 3


async def test_a_session_deleted_during_its_turn_stays_deleted(cluster: Cluster) -> None:
    """A turn that ends after its session was deleted is not stored: ABORTED, nothing comes back to life."""
    await events_of(cluster.front.inference.Chat(user("x", session_id="s")))
    call = cluster.front.inference.Chat(user("y", session_id="s"))
    with pytest.raises(grpc.aio.AioRpcError) as caught:  # noqa: PT012  # the deletion must fall into the turn
        async for event in call:
            if event.HasField("started"):
                await cluster.front.router._redis.flushall()  # type: ignore[union-attr]  # this router has one
    assert caught.value.code() is grpc.StatusCode.ABORTED


@pytest.mark.parametrize("method", ["GetSession", "DeleteSession"])
async def test_absent_sessions_are_not_found(method: str, cluster: Cluster) -> None:
    """What does not exist is NOT_FOUND, a missing name is INVALID_ARGUMENT."""
    request = {"GetSession": api.GetSessionRequest, "DeleteSession": api.DeleteSessionRequest}[method]
    codes = []
    for name in ("nobody", ""):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await getattr(cluster.front.sessions, method)(request(session_id=name))
        codes.append(caught.value.code())

    assert codes == [grpc.StatusCode.NOT_FOUND, grpc.StatusCode.INVALID_ARGUMENT]


@pytest.mark.parametrize(
    "request_",
    [api.ListSessionsRequest(page_size=1001), api.ListSessionsRequest(page_token="?")],
    ids=["size", "token"],
)
async def test_bad_pages_are_refused(request_: api.ListSessionsRequest, cluster: Cluster) -> None:
    """A page too large or a token from elsewhere is the caller's mistake."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await cluster.front.sessions.ListSessions(request_)

    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_without_redis_there_are_no_sessions(start_router: StartRouter) -> None:
    """A router without Redis says UNAVAILABLE to every session request."""
    front = await start_router()
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await front.sessions.ListSessions(api.ListSessionsRequest())

    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
