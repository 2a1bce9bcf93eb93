"""Conversations that are longer than the context."""

from __future__ import annotations

from typing import Any

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.proto.v1 import inference_pb2 as api
from shoal.router.fleet.scripted_worker import saying
from shoal.router.harmony.message import ChatMessage, Rendered, Role
from shoal.router.inference.fitting import last_turn, without_oldest
from shoal.router.tokenizer import Tokenizer
from tests.router.byte_tokenizer import ids_of
from tests.router.conftest import Cluster, StartCluster
from tests.router.talking import events_of, failed, trailing, user

ANSWER = "<|channel|>final<|message|>yes<|return|>"
DROP = api.CONTEXT_POLICY_DROP_OLDEST

ROLES: list[Role] = ["user", "assistant", "tool", "developer"]


def message(role: Role, size: int, number: int) -> ChatMessage:
    """One with so many ids."""
    return ChatMessage(role, str(number), rendered=Rendered(tuple(range(size))))


@given(
    said=st.lists(st.tuples(st.sampled_from(ROLES), st.integers(1, 9)), max_size=20),
    excess=st.integers(-5, 60),
    data=st.data(),
)
def test_what_goes_is_old_and_whole(said: list[tuple[Role, int]], excess: int, data: st.DataObject) -> None:
    """Whatever the conversation: instructions and what must stay do, in order; of the rest whole turns go from the
    oldest on, and no more of them than needed."""
    messages = [message(role, size, number) for number, (role, size) in enumerate(said)]
    kept_from = data.draw(st.integers(0, len(messages)))
    kept = without_oldest(messages, excess, kept_from)
    gone = [m for m in messages if m not in kept]

    assert [m for m in messages if m in kept] == list(kept)
    assert set(messages[kept_from:]) <= set(kept)
    assert not any(m.role == "developer" for m in gone)
    if excess <= 0:
        assert gone == []
    spoken = [m for m in messages if m.role != "developer"]
    assert gone == spoken[: len(gone)]
    if gone and len(gone) < len([m for m in spoken if messages.index(m) < kept_from]):
        after = spoken[len(gone)]
        assert after.role == "user", "a turn was cut in its middle"


def test_a_call_goes_with_its_result() -> None:
    """A tool loop is part of the turn that began it."""
    roles: list[Role] = ["user", "assistant", "tool", "assistant", "user", "assistant", "user"]
    messages = [message(role, 5, number) for number, role in enumerate(roles)]

    assert last_turn(messages) == 6
    assert [m.content for m in without_oldest(messages, 1, 6)] == ["4", "5", "6"]
    assert [m.content for m in without_oldest(messages, 1000, 6)] == ["6"]


@pytest.fixture
async def cluster(start_cluster: StartCluster, tokenizer: Tokenizer, redis_url: str) -> Cluster:
    """A model with room for two or three short turns."""
    return await start_cluster(saying(ids_of(tokenizer, ANSWER)), redis_url=redis_url, welcome={"max_context": 500})


def prompt_of(cluster: Cluster, tokenizer: Tokenizer) -> str:
    """What the model read last."""
    return tokenizer.decode([token for part in cluster.worker.submits[-1].prompt for token in part.ids])


async def told_of(cluster: Cluster, request: api.ChatRequest) -> list[Any]:
    """The warnings of a turn that ended well."""
    events = await events_of(cluster.front.inference.Chat(request))
    assert events[-1].HasField("done")
    return [event.warning for event in events if event.HasField("warning")]


async def test_a_conversation_goes_on_beyond_the_context(cluster: Cluster, tokenizer: Tokenizer) -> None:
    """Turn after turn with the policy: instructions and the new words are always read, the oldest turns are not, a
    warning says so; the session keeps all of it."""
    first = user("first question " + "x" * 60, session_id="s", context_policy=DROP)
    first.messages.insert(0, api.Message(role=api.ROLE_DEVELOPER, content="Be brief."))
    assert await told_of(cluster, first) == []
    for number in range(2, 6):
        again = user(f"question {number} " + "x" * 60, session_id="s", context_policy=DROP)
        warnings = await told_of(cluster, again)
        read = prompt_of(cluster, tokenizer)
        assert "Be brief." in read
        assert f"question {number} " in read
    stored = await cluster.front.sessions.GetSession(api.GetSessionRequest(session_id="s"))

    assert [warning.code for warning in warnings] == ["context_cut"]
    assert "first question" not in read
    assert len(read) < 500
    assert stored.session.next_turn == 5
    assert "first question" in stored.items[1].message.content


async def test_without_the_policy_it_is_refused(cluster: Cluster) -> None:
    """It says by how many tokens, and nothing is stored or left reserved."""
    for _ in range(2):
        _, error = await failed(cluster.front.inference.Chat(user("x" * 600, session_id="s")))
        assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert trailing(error)["shoal-reason"] == "prompt_too_long"


async def test_a_stateless_conversation_is_cut_too(cluster: Cluster, tokenizer: Tokenizer) -> None:
    """What is sent along as history goes before the last words do."""
    request = user("old words " + "x" * 300, context_policy=DROP)
    request.messages.append(api.Message(role=api.ROLE_ASSISTANT, content="an answer"))
    request.messages.append(api.Message(role=api.ROLE_USER, content="new words"))
    warnings = await told_of(cluster, request)

    assert [warning.code for warning in warnings] == ["context_cut"]
    assert "old words" not in prompt_of(cluster, tokenizer)
    assert "new words" in prompt_of(cluster, tokenizer)


async def test_words_that_never_fit_are_refused_all_the_same(cluster: Cluster) -> None:
    """The new words are never cut."""
    await told_of(cluster, user("hello", session_id="s"))
    _, error = await failed(cluster.front.inference.Chat(user("x" * 600, session_id="s", context_policy=DROP)))

    assert trailing(error)["shoal-reason"] == "prompt_too_long"


async def test_an_unknown_policy_is_refused(cluster: Cluster) -> None:
    """By its name."""
    _, error = await failed(cluster.front.inference.Chat(user("x", context_policy=9)))
    assert "context_policy" in (error.details() or "")
