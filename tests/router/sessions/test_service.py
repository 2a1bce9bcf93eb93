"""Get, list and delete sessions over a real socket."""

from __future__ import annotations

import grpc
import grpc.aio
import pytest
import redis.asyncio

from shoal.proto.v1 import inference_pb2 as api
from shoal.router.fleet.scripted_worker import saying
from shoal.router.harmony.message import ChatMessage, Rendered
from shoal.router.sessions.redis_store import RedisSessions, connect
from shoal.router.sessions.store import Turn
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


async def test_ten_megabytes_are_read_forked_and_gone_on_with(cluster: Cluster, redis_url: str) -> None:
    """By a client with gRPC's own limit of 4 MiB: page by page, every item once. Its fork is the same; the next turn
    leaves out what does not fit."""
    client = connect(redis_url)
    store = RedisSessions(client)
    said = ChatMessage("user", "x" * 100_000, rendered=Rendered((77,) * 100_000))
    for number in range(50):
        await store.append("default", "s", Turn(number, (said,), "w", 600, "2026-11-20"))
    await client.aclose()
    await cluster.front.sessions.ForkSession(api.ForkSessionRequest(session_id="s", new_session_id="f"))
    turns: dict[str, list[int]] = {"s": [], "f": []}
    for name, read in turns.items():
        asked: int | None = 0
        while asked is not None:
            request = api.GetSessionRequest(session_id=name, from_turn=asked, max_bytes=2**22)
            page = await cluster.front.sessions.GetSession(request)
            read += [item.turn for item in page.items]
            assert page.session.bytes > 10_000_000
            asked = page.more_from_turn if page.HasField("more_from_turn") else None
    cut = user("hi", session_id="s", context_policy=api.CONTEXT_POLICY_DROP_OLDEST)
    events = await events_of(cluster.front.inference.Chat(cut))

    assert turns == {"s": list(range(50)), "f": list(range(50))}
    assert (events[0].started.turn, events[-1].HasField("done")) == (50, True)


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
                await cluster.front.router.redis.client.flushall()  # type: ignore[union-attr]  # this router has one
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


async def test_a_new_session_is_empty_and_goes_on(cluster: Cluster) -> None:
    """It has a name, the asked time to live also after turns that do not say, and begins with turn 0."""
    made = (await cluster.front.sessions.CreateSession(api.CreateSessionRequest(ttl_seconds=50))).session
    events = await events_of(cluster.front.inference.Chat(user("x", session_id=made.session_id)))
    got = await cluster.front.sessions.GetSession(api.GetSessionRequest(session_id=made.session_id))
    listed = await cluster.front.sessions.ListSessions(api.ListSessionsRequest())

    assert made.session_id
    assert made.next_turn == 0
    assert events[0].started.turn == 0
    assert 45 <= got.session.expires_in_seconds <= 50
    assert got.session.bytes > 0
    assert [made.session_id] == [info.session_id for info in listed.sessions]


async def test_a_taken_name_is_told(cluster: Cluster) -> None:
    """Creating or forking onto a session that exists is ALREADY_EXISTS and changes nothing."""
    await events_of(cluster.front.inference.Chat(user("x", session_id="s")))
    for call in (
        cluster.front.sessions.CreateSession(api.CreateSessionRequest(session_id="s")),
        cluster.front.sessions.ForkSession(api.ForkSessionRequest(session_id="s", new_session_id="s")),
    ):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call
        assert caught.value.code() is grpc.StatusCode.ALREADY_EXISTS
    assert len((await cluster.front.sessions.GetSession(api.GetSessionRequest(session_id="s"))).items) == 3


async def test_a_fork_begins_with_what_was_said(cluster: Cluster) -> None:
    """Ids and turns are the same up to where it was asked for; both go on by themselves."""
    for text in ("a", "b"):
        await events_of(cluster.front.inference.Chat(user(text, session_id="s")))
    fork = api.ForkSessionRequest(session_id="s", new_session_id="f", before_turn=1, ttl_seconds=50)
    made = (await cluster.front.sessions.ForkSession(fork)).session
    events = await events_of(cluster.front.inference.Chat(user("c", session_id="f")))
    ours = await cluster.front.sessions.GetSession(api.GetSessionRequest(session_id="s"))
    theirs = await cluster.front.sessions.GetSession(api.GetSessionRequest(session_id="f"))

    assert (1, True) == (made.next_turn, 45 <= made.expires_in_seconds <= 50)
    assert events[0].started.turn == 1
    assert ours.items[:3] == theirs.items[:3]
    assert ["a", "hm", "yes", "b", "hm", "yes"] == [item.message.content for item in ours.items]
    assert ["a", "hm", "yes", "c", "hm", "yes"] == [item.message.content for item in theirs.items]
    first, second = cluster.worker.submits[-2:]
    assert list(first.prompt)[:-2] == list(second.prompt)[:-2]


async def test_what_cannot_be_forked_is_told(cluster: Cluster) -> None:
    """An absent session is NOT_FOUND; a turn that is not there yet, or a bad time to live, INVALID_ARGUMENT."""
    await events_of(cluster.front.inference.Chat(user("x", session_id="s")))
    for request, code in (
        (api.ForkSessionRequest(session_id="absent"), grpc.StatusCode.NOT_FOUND),
        (api.ForkSessionRequest(session_id="s", before_turn=2), grpc.StatusCode.INVALID_ARGUMENT),
        (api.ForkSessionRequest(session_id="s", ttl_seconds=0), grpc.StatusCode.INVALID_ARGUMENT),
        (api.ForkSessionRequest(session_id="s", new_session_id="a\0b"), grpc.StatusCode.INVALID_ARGUMENT),
    ):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await cluster.front.sessions.ForkSession(request)
        assert caught.value.code() is code


async def test_a_deleted_session_is_gone_from_everywhere(cluster: Cluster) -> None:
    """No key of Redis holds a word of it any more: not the session's, not the journal's of its turns."""
    for _ in range(2):
        await events_of(cluster.front.inference.Chat(user("canary", session_id="s")))
    client: redis.asyncio.Redis = cluster.front.router.redis.client  # type: ignore[assignment]  # one server
    before = len(await client.keys("*"))
    await cluster.front.sessions.DeleteSession(api.DeleteSessionRequest(session_id="s"))

    assert before >= 6
    assert [] == [key for key in await client.keys("*") if key != b"shoal:loads"]  # what routers have to do
