"""Answers that cannot differ, given again, over real sockets and a real Redis."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from shoal.proto.v1 import inference_pb2 as api
from shoal.proto.v1 import worker_pb2 as pb
from shoal.proto.v1.journal_pb2 import JournalTokens
from shoal.router.cache.answers import AnswerLimits, Answers
from shoal.router.cache.remembering import WORKER, name_of
from shoal.router.fleet.backend import Work
from shoal.router.fleet.scripted_worker import saying
from shoal.router.harmony.message import Run
from shoal.router.limits.config import LimitsConfig
from shoal.router.store.connect import connect
from shoal.router.tokenizer import Tokenizer
from tests.router.byte_tokenizer import ids_of
from tests.router.conftest import Cluster, StartCluster
from tests.router.inference.test_resume import plain
from tests.router.talking import answer_of, events_of, user

ANSWER = "<|channel|>final<|message|>yes<|return|>"


@pytest.fixture
def agreed(tmp_path: Path) -> dict[str, Any]:
    """Settings of a router whose tenant wants answers from the cache."""
    file = tmp_path / "tenants.toml"
    file.write_text("[default]\nresponse_cache = true\n")
    return {"limits": LimitsConfig(tenants_file=str(file))}


@pytest.fixture
async def cluster(start_cluster: StartCluster, tokenizer: Tokenizer, redis_url: str, agreed: dict[str, Any]) -> Cluster:
    """One worker."""
    return await start_cluster(saying(ids_of(tokenizer, ANSWER)), redis_url=redis_url, **agreed)


def greedy(text: str = "well?", **fields: Any) -> api.ChatRequest:
    """A request whose answer cannot differ."""
    return user(text, **{"sampling": api.Sampling(temperature=0), **fields})


async def test_a_known_answer_is_given_again(cluster: Cluster) -> None:
    """Event for event, and the worker is not asked; the first event says where it came from."""
    first = await events_of(cluster.front.inference.Chat(greedy()))
    again = await events_of(cluster.front.inference.Chat(greedy()))
    for events in (first, again):
        events[0].started.seed = 0  # drawn for each; a greedy answer does not depend on it

    assert plain(first) == plain(again)
    assert again[0].started.worker == WORKER
    assert len(cluster.worker.submits) == 1


async def test_sessions_keep_a_known_answer_as_any_other(cluster: Cluster) -> None:
    """Two sessions that begin alike: the second one's turn is stored, too."""
    for name in "ab":
        await events_of(cluster.front.inference.Chat(greedy(session_id=name)))
    stored = await cluster.front.sessions.GetSession(api.GetSessionRequest(session_id="b"))

    assert [item.message.content for item in stored.items] == ["well?", "yes"]
    assert len(cluster.worker.submits) == 1


async def test_what_may_differ_is_generated(cluster: Cluster) -> None:
    """Other words, another seed, other limits, log-probabilities, or no seed at all: each is asked of the worker."""
    requests = [
        greedy(),
        greedy("why?"),
        greedy(limits=api.Limits(max_tokens=3)),
        greedy(logprobs=True),
        greedy(sampling=api.Sampling(seed=1)),
        greedy(sampling=api.Sampling(seed=2)),
        greedy(sampling=api.Sampling(seed=2, temperature=0.5)),
        user("well?"),
        user("well?"),
    ]
    for request in requests:
        await events_of(cluster.front.inference.Chat(request))

    assert len(cluster.worker.submits) == len(requests)


async def test_nobody_is_remembered_who_did_not_ask(
    start_cluster: StartCluster, tokenizer: Tokenizer, redis_url: str
) -> None:
    """Without the policy every request is generated, and no answer is kept."""
    cluster = await start_cluster(saying(ids_of(tokenizer, ANSWER)), redis_url=redis_url)
    for _ in range(2):
        await events_of(cluster.front.inference.Chat(greedy()))
    client: Any = cluster.front.router.redis.client

    assert len(cluster.worker.submits) == 2
    assert await client.keys("shoal:answers:*") == []


async def test_without_redis_it_is_generated(
    start_cluster: StartCluster, tokenizer: Tokenizer, agreed: dict[str, Any]
) -> None:
    """The cache is never in the way."""
    cluster = await start_cluster(saying(ids_of(tokenizer, ANSWER)), redis_url="unix:///nowhere/redis.sock", **agreed)
    events = await events_of(cluster.front.inference.Chat(greedy()))

    assert answer_of(events) == "yes"


def test_the_name_has_what_matters_and_nothing_else() -> None:
    """Who asks, when and how often does not count; the bits that workers compute do."""

    def work(**fields: Any) -> Work:
        usual: dict[str, Any] = {
            "request_id": "a", "prompt": (Run((1, 2), False),), "seed": 1, "sampling": pb.WorkerSampling(temperature=1),
            "limits": pb.WorkerLimits(max_tokens=5), "deadline": 1.0,
        }  # fmt: skip
        return Work(**{**usual, **fields})

    name = name_of(work(), "n")
    same = [work(request_id="b"), work(deadline=2.0), work(cache_salt=b"x"), work(attempt=3), work(traceparent="t")]
    other = [work(seed=2), work(prompt=(Run((1, 3), False),)), work(prompt=(Run((1, 2), True),)), work(choice=1)]

    assert {name} == {name_of(w, "n") for w in same}
    assert len({name, name_of(work(), "m"), *(name_of(w, "n") for w in other)}) == 2 + len(other)


@pytest.fixture
async def answers(redis_url: str) -> AsyncIterator[Answers]:
    """A small and forgetful store."""
    client = connect(redis_url)
    yield Answers(client, AnswerLimits(seconds=0.3, most_bytes=300))
    await client.aclose()


def answer(size: int) -> list[JournalTokens]:
    """One that takes about so many bytes."""
    return [JournalTokens(ids=[1] * (size - 8))]


async def test_the_oldest_answers_go_first(answers: Answers) -> None:
    """The bound holds, and one that is too large alone changes nothing."""
    for i in range(4):
        await answers.put("t", f"a{i}", answer(130))
        await asyncio.sleep(0.002)
    await answers.put("t", "huge", answer(1000))
    known = [await answers.get("t", f"a{i}") for i in range(4)]

    assert [False, False, True, True] == [found is not None for found in known]
    assert await answers.get("t", "huge") is None
    assert [list(entry.ids) for entry in known[3] or ()] == [[1] * 122]


async def test_tenants_have_answers_of_their_own(answers: Answers) -> None:
    """Another tenant's are not known, and its bound is its own."""
    await answers.put("a", "x", answer(200))
    await answers.put("b", "x", answer(200))

    assert await answers.get("c", "x") is None
    assert await answers.get("a", "x") is not None


async def test_an_old_answer_is_not_given(answers: Answers) -> None:
    """After its time it is as if it had never been."""
    await answers.put("t", "x", answer(50))
    await asyncio.sleep(0.35)

    assert await answers.get("t", "x") is None
