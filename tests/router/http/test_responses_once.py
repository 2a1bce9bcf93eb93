"""`Idempotency-Key` on responses, over real sockets, two routers and a real Redis."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from shoal.proto.v1 import inference_pb2 as api
from shoal.proto.v1 import worker_pb2 as pb
from shoal.router.errors import SessionsAwayError
from shoal.router.fleet.scripted_worker import Action, Say, saying
from shoal.router.safeguards.config import SafeguardsConfig
from shoal.router.tokenizer import Tokenizer
from tests.router.byte_tokenizer import ids_of
from tests.router.conftest import Cluster, StartCluster, StartRouter
from tests.router.http.asking import Answer, ask, hear
from tests.router.talking import until

WORDS = "<|channel|>analysis<|message|>hm<|end|><|start|>assistant<|channel|>final<|message|>Hi, a@b.org<|return|>"
ASKED = {"model": "model", "input": "A"}


class Parties:
    """Two routers with one worker."""

    def __init__(self, cluster: Cluster, addresses: tuple[str, str]) -> None:
        self.cluster, self.addresses = cluster, addresses

    async def create(self, router: int = 0, key: str = "k", **more: Any) -> Answer:
        """Ask one of them."""
        return await ask(self.addresses[router], "/v1/responses", {**ASKED, **more}, Idempotency_Key=key)

    async def turns(self) -> int:
        """Of all sessions."""
        listed = await self.cluster.front.sessions.ListSessions(api.ListSessionsRequest())
        return sum(session.next_turn for session in listed.sessions)

    @property
    def generated(self) -> int:
        """How often the worker was asked."""
        return len(self.cluster.worker.submits)


@pytest.fixture
def safeguards() -> SafeguardsConfig:
    """None, unless a test has its own."""
    return SafeguardsConfig()


@pytest.fixture
async def parties(
    start_router: StartRouter,
    start_cluster: StartCluster,
    tokenizer: Tokenizer,
    redis_url: str,
    safeguards: SafeguardsConfig,
) -> Parties:
    """Slow enough to be cut off."""
    ids = ids_of(tokenizer, WORDS)

    async def script(submit: pb.Submit) -> AsyncIterator[Action]:
        for token in ids[submit.start_offset : -1]:
            yield Say((token,))
            await asyncio.sleep(0.002)
        yield Say((ids[-1],), pb.SEQUENCE_FINISH_STOP_TOKEN)

    settings: dict[str, Any] = {
        "http_port": 0, "model_name": "model", "redis_url": redis_url, "lease_seconds": 0.5, "safeguards": safeguards,
    }  # fmt: skip
    cluster = await start_cluster(script, **settings)
    other = await start_router(workers=(cluster.worker.address,), **settings)
    await until(lambda: bool(other.router.pool.eligible()))
    return Parties(cluster, (cluster.front.listening.http, other.listening.http))


@pytest.mark.parametrize("store", [True, False])
async def test_sent_again_it_is_the_same_response(parties: Parties, store: bool) -> None:
    """By another router, however the body's fields are ordered: same id, same words; no turn is added."""
    first = await parties.create(store=store, temperature=1.0)
    body = {"temperature": 1.0, "store": store, **dict(reversed(ASKED.items()))}
    again = await ask(parties.addresses[1], "/v1/responses", body, Idempotency_Key="k")

    assert first.status == 200, first.text
    unknown = {} if store else {"created_at": 0}  # of what is not stored nobody knows when it was asked for first
    assert {**first.json, **unknown} == {**again.json, **unknown}
    assert "Hi, a@b.org" in again.text
    assert parties.generated == 1
    assert await parties.turns() == store


@pytest.mark.parametrize("safeguards", [SafeguardsConfig(redact=("email",))])
async def test_under_redaction_what_is_stored_is_told_again_and_nothing_else(parties: Parties) -> None:
    """The journal has nothing of the answer then: a stored response is there, one that was not stored is over. Neither
    is generated a second time."""
    stored = [await parties.create(n, store=True) for n in (0, 1)]
    kept_nowhere = [await parties.create(n, key="other", store=False) for n in (0, 1)]

    assert stored[0].json == stored[1].json
    assert "Hi, [email]" in stored[1].text
    assert [answer.status for answer in kept_nowhere] == [200, 409]
    assert kept_nowhere[1].error["code"] == "request_over"
    assert parties.generated == 2
    assert await parties.turns() == 1


@pytest.mark.parametrize("safeguards", [SafeguardsConfig(redact=("email",))])
async def test_under_redaction_a_broken_stream_goes_on(parties: Parties) -> None:
    """While it is not over it is generated again, and told from the first word."""
    body = {**ASKED, "stream": True}
    await hear(parties.addresses[0], "/v1/responses", body, events=4, Idempotency_Key="k")
    again = await parties.create(1, stream=True)

    assert again.events[-1]["type"] == "response.completed"
    assert "Hi, [email]" in again.text
    assert await parties.turns() == 1


async def test_a_stream_is_told_again(parties: Parties) -> None:
    """All of its events, from the first."""
    first = await parties.create(stream=True)
    again = await parties.create(1, stream=True)

    assert [event["type"] for event in first.events] == [event["type"] for event in again.events]
    assert first.events[-1]["response"] == again.events[-1]["response"]
    assert (parties.generated, await parties.turns()) == (1, 1)


async def test_a_client_that_lost_its_stream_sends_it_again(parties: Parties) -> None:
    """It hears all of it; the conversation has one turn and goes on from there."""
    body = {**ASKED, "stream": True}
    heard = await hear(parties.addresses[0], "/v1/responses", body, events=4, Idempotency_Key="k")
    again = await parties.create(1, stream=True)
    name = again.events[-1]["response"]["id"]
    next_one = await parties.create(0, key="other", previous_response_id=name)

    assert heard[0]["response"]["id"] == name
    assert again.events[-1]["type"] == "response.completed"
    assert next_one.status == 200, next_one.text
    assert await parties.turns() == 2


async def test_a_continued_response_is_made_once(parties: Parties) -> None:
    """`previous_response_id` with a key: sent again it neither branches nor adds a turn."""
    begun = await parties.create(key="")
    first = await parties.create(key="next", previous_response_id=begun.json["id"])
    again = await parties.create(1, key="next", previous_response_id=begun.json["id"])

    assert first.json == again.json
    assert await parties.turns() == 2


async def test_background_work_is_begun_once(parties: Parties) -> None:
    """While it runs and when it is over; also followed as a stream."""
    first = await parties.create(background=True)
    again = await parties.create(1, background=True)
    name = first.json["id"]
    for _ in range(200):
        if (await ask(parties.addresses[1], f"/v1/responses/{name}")).json["status"] == "completed":
            break
        await asyncio.sleep(0.02)
    at_last = await parties.create(1, background=True)

    assert name == again.json["id"] == at_last.json["id"]
    assert at_last.json["status"] == "completed"
    assert parties.generated == 1


async def test_many_at_once_make_one_response(parties: Parties) -> None:
    """Those that are not told it are told to come back."""
    answers = await asyncio.gather(*(parties.create(n % 2) for n in range(8)))
    names = {answer.json["id"] for answer in answers if answer.status == 200}

    assert {answer.status for answer in answers} <= {200, 409}
    assert {(await parties.create()).json["id"]} >= names
    assert await parties.turns() == 1


async def test_a_key_stands_for_one_response(parties: Parties) -> None:
    """With other words it is refused."""
    await parties.create()
    refused = await parties.create(input="B")

    assert refused.status == 400
    assert "idempotency_key" in refused.text


async def test_what_came_to_nothing_frees_its_key(parties: Parties) -> None:
    """An answer that is not there to be continued: told each time, not held by the first."""
    for router in (0, 1):
        refused = await parties.create(router, previous_response_id="resp_gone")
        assert refused.status == 400
        assert refused.error["code"] == "previous_response_not_found"
    assert (await parties.create(input="B")).status == 200


async def test_a_deleted_response_is_gone_from_the_journal_too(parties: Parties) -> None:
    """What it said is not told again to who knows its key."""
    first = (await parties.create()).json["id"]
    client: Any = parties.cluster.front.router.redis.client
    assert await client.exists(f"shoal:request:{{default:{first.removeprefix('resp_')}}}")
    await ask(parties.addresses[0], f"/v1/responses/{first}", method="DELETE")

    assert not [key async for key in client.scan_iter(f"*{first.removeprefix('resp_')}*")]


async def test_without_redis_a_key_cannot_be_honoured(start_cluster: StartCluster, tokenizer: Tokenizer) -> None:
    """503 instead of a promise that cannot be kept."""
    cluster = await start_cluster(saying(ids_of(tokenizer, WORDS)), http_port=0, model_name="model")
    answer = await ask(cluster.front.listening.http, "/v1/responses", ASKED, Idempotency_Key="k")

    assert answer.status == 503
    assert answer.error["code"] == SessionsAwayError.reason
    assert not cluster.worker.submits
