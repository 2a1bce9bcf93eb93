"""Responses in the background, over several routers on one Redis."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

from shoal.proto.v1 import worker_pb2 as pb
from shoal.router.fleet.scripted_worker import STOPPED, Action, Hang, Say, Script, doing, saying
from shoal.router.http.responses.records import Record, Records
from shoal.router.sessions.redis_store import connect
from shoal.router.tokenizer import Tokenizer
from tests.router.byte_tokenizer import ids_of
from tests.router.conftest import StartCluster, StartRouter
from tests.router.http.asking import ask, hear
from tests.router.talking import until

WORDS = "<|channel|>final<|message|>Hi<|return|>"


async def test_background_work_is_every_routers(
    start_router: StartRouter, start_cluster: StartCluster, tokenizer: Tokenizer, redis_url: str
) -> None:
    """Begun at one, followed and cancelled through another."""
    settings: dict[str, Any] = {"http_port": 0, "model_name": "model", "redis_url": redis_url}
    cluster = await start_cluster(doing(Say(tuple(ids_of(tokenizer, WORDS))[:6]), Hang()), **settings)
    other = await start_router(workers=(cluster.worker.address,), **settings)
    here, there = cluster.front.listening.http, other.listening.http
    asked = {"model": "model", "input": "A", "background": True}
    begun = (await ask(here, "/v1/responses", asked)).json
    watched = await hear(here, "/v1/responses", {**asked, "stream": True}, events=2)
    name = watched[0]["response"]["id"]
    assert (await ask(there, f"/v1/responses/{begun['id']}")).json["status"] in ("queued", "in_progress")
    cancelled = await ask(there, f"/v1/responses/{begun['id']}/cancel", {})
    following = asyncio.create_task(ask(there, f"/v1/responses/{name}?stream=true"))
    await ask(there, f"/v1/responses/{name}/cancel", {})

    assert cancelled.json["status"] == "cancelled"
    events = (await following).events
    assert events[: len(watched)] == watched
    assert events[-1]["response"]["status"] == "cancelled"


async def test_background_work_of_a_router_that_is_gone_has_failed(
    start_router: StartRouter, start_cluster: StartCluster, redis_url: str
) -> None:
    """It is stored so, with the reason, and who follows it hears it; the one that was gone cannot change that."""
    settings: dict[str, Any] = {"http_port": 0, "model_name": "model", "redis_url": redis_url}
    cluster = await start_cluster(doing(Say((1,)), Hang()), **settings)
    address = cluster.front.listening.http
    asked = {"model": "model", "input": "A", "background": True, "stream": True}
    name = (await hear(address, "/v1/responses", asked, events=1))[0]["response"]["id"]
    client = connect(redis_url)
    raw = await client.get(f"shoal:response:{{default:{name}}}")
    assert raw is not None
    record = json.loads(raw)
    record["response"]["id"] = lost = name.replace("resp_", "resp_0")
    await client.set(f"shoal:response:{{default:{lost}}}", json.dumps(record), ex=60)
    seen = (await ask(address, f"/v1/responses/{lost}")).json
    followed = (await ask(address, f"/v1/responses/{lost}?stream=true")).events
    records = Records(client, 60)
    changed = await records.save("default", Record({"id": lost, "status": "completed"}, "", 0), existing=True)
    await client.aclose()

    assert (seen["status"], "is gone" in seen["error"]["message"]) == ("failed", True)
    assert [event["type"] for event in followed] == ["response.failed"]
    assert not changed
    assert (await ask(address, f"/v1/responses/{lost}")).json == seen


async def test_background_work_gets_the_patience_of_a_router_that_stops(
    start_router: StartRouter, start_cluster: StartCluster, tokenizer: Tokenizer, redis_url: str
) -> None:
    """What ends in time is completed; what does not goes on at the next router that is asked about it."""
    settings: dict[str, Any] = {"http_port": 0, "model_name": "model", "redis_url": redis_url}
    cluster = await start_cluster(saying(ids_of(tokenizer, WORDS), pause=0.02), **settings)
    other = await start_router(workers=(cluster.worker.address,), **settings)
    asked = {"model": "model", "input": "A", "background": True}
    quick = (await ask(cluster.front.listening.http, "/v1/responses", asked)).json["id"]
    await cluster.front.router.stop(5)
    assert (await ask(other.listening.http, f"/v1/responses/{quick}")).json["status"] == "completed"
    cluster.worker.script = _stopping_at(tokenizer, 6)
    slow = (await ask(other.listening.http, "/v1/responses", asked)).json["id"]
    await until(lambda: bool(cluster.worker.running))
    third = await start_router(workers=(cluster.worker.address,), **settings)
    await other.router.stop(0.1)
    assert (await ask(third.listening.http, f"/v1/responses/{slow}")).json["status"] == "in_progress"
    cluster.worker.script = _stopping_at(tokenizer, 1000)
    cluster.worker.break_streams()

    assert await _text_of(third.listening.http, slow) == "Hi"


async def test_background_work_of_a_router_that_died_goes_on(
    start_router: StartRouter, start_cluster: StartCluster, tokenizer: Tokenizer, redis_url: str
) -> None:
    """Who follows it from another router, or goes on behind an event, misses none and sees none twice; the next turn
    continues it."""
    settings: dict[str, Any] = {"http_port": 0, "model_name": "model", "redis_url": redis_url}
    cluster = await start_cluster(_stopping_at(tokenizer, len(ids_of(tokenizer, WORDS)) - 2), **settings)
    other = await start_router(workers=(cluster.worker.address,), **settings)
    here, there = cluster.front.listening.http, other.listening.http
    asked = {"model": "model", "input": "A", "background": True, "stream": True, "seed": 5}
    seen = await hear(here, "/v1/responses", asked, events=4)
    name = seen[0]["response"]["id"]
    cluster.worker.script = _stopping_at(tokenizer, 1000)
    client = connect(redis_url)
    await client.delete(f"shoal:response:{{default:{name}}}:alive")  # as if nobody had said so for long
    await client.aclose()
    path = f"/v1/responses/{name}?stream=true&starting_after={seen[-1]['sequence_number']}"
    rest = (await ask(there, path)).events
    whole = (await ask(here, f"/v1/responses/{name}?stream=true")).events
    following = {"model": "model", "input": "B", "previous_response_id": name}

    assert [event["sequence_number"] for event in [*seen, *rest]] == list(range(len(whole)))
    assert [*seen, *rest] == whole
    assert rest[-1]["response"]["output"][0]["content"][0]["text"] == "Hi"
    assert (await ask(there, "/v1/responses", following)).json["status"] == "completed"


def _stopping_at(tokenizer: Tokenizer, most: int) -> Script:
    """Says the words from where it is told that it is, and is silent after `most` tokens."""
    ids = ids_of(tokenizer, WORDS)

    async def script(submit: pb.Submit) -> AsyncIterator[Action]:
        for index in range(submit.start_offset, min(len(ids), most)):
            yield Say((ids[index],), STOPPED if index == len(ids) - 1 else pb.SEQUENCE_FINISH_UNSPECIFIED)
        if most < len(ids):
            yield Hang()

    return script


async def _text_of(address: str, name: str) -> str:
    told: Any = {}
    for _ in range(200):
        told = (await ask(address, f"/v1/responses/{name}")).json
        if told["status"] not in ("queued", "in_progress"):
            break
        await asyncio.sleep(0.05)
    assert told["status"] == "completed", told
    return str(told["output"][0]["content"][0]["text"])
