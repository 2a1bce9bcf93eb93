"""The HTTP API from outside: paths, probes, and everything that can be wrong with a request."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from shoal.router.fleet.scripted_worker import Hang, Say, doing, saying
from shoal.router.tokenizer import Tokenizer
from tests.router.byte_tokenizer import ids_of, write_tokenizer
from tests.router.conftest import Cluster, StartCluster, StartRouter
from tests.router.http.asking import HELLO, Answer, ask
from tests.router.talking import until

CHAT = "/v1/chat/completions"
WORDS = "<|channel|>final<|message|>Hi<|return|>"


@pytest.fixture
async def cluster(start_cluster: StartCluster, tokenizer: Tokenizer) -> Cluster:
    """A router that serves HTTP, in front of a worker that greets."""
    return await start_cluster(saying(ids_of(tokenizer, WORDS)), http_port=0, model_name="model")


async def chat(cluster: Cluster, **fields: Any) -> Answer:
    """A chat completion with some fields of its own; None takes one away."""
    body = {name: value for name, value in {**HELLO, **fields}.items() if value is not None}
    return await ask(cluster.front.listening.http, CHAT, body)


async def test_a_request_is_answered(cluster: Cluster) -> None:
    """With the caller's own name for it."""
    answer = await ask(cluster.front.listening.http, CHAT, HELLO, x_request_id="mine")

    assert answer.status == 200
    assert answer.json["choices"][0]["message"]["content"] == "Hi"
    assert answer.headers["x-request-id"] == "mine"


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({"temperature": -1}, "temperature", "invalid_value"),
        ({"top_p": 0}, "top_p", "invalid_value"),
        ({"temperature": "hot"}, "temperature", "invalid_type"),
        ({"messages": None}, "messages", "missing_required_parameter"),
        ({"messages": []}, "messages", "invalid_value"),
        ({"messages": "hi"}, "messages", "invalid_type"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "messages[0].role", "invalid_value"),
        ({"messages": [{"role": "user"}]}, "messages[0].content", "missing_required_parameter"),
        ({"messages": [{"role": "user", "content": ""}]}, "messages[0].content", "invalid_value"),
        ({"messages": [{"role": "user", "content": "x", "y": 1}]}, "messages[0].y", "unknown_parameter"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
            "messages[0].content[0].type",
            "invalid_value",
        ),
        (
            {"messages": [{"role": "tool", "tool_call_id": "x", "content": "1"}]},
            "messages[0].tool_call_id",
            "invalid_value",
        ),
        ({"max_tokens": 0}, "max_tokens", "invalid_value"),
        ({"temprature": 1}, "temprature", "unknown_parameter"),
        ({"functions": []}, "functions", "unsupported_parameter"),
        ({"n": 17}, "n", "invalid_value"),
        ({"stop": [""]}, "stop", "invalid_value"),
        ({"top_logprobs": 3}, "top_logprobs", "invalid_value"),
        ({"logit_bias": {"x": 1}}, "logit_bias", "invalid_value"),
        ({"reasoning_effort": "heroic"}, "reasoning_effort", "invalid_value"),
        ({"response_format": {"type": "xml"}}, "response_format.type", "invalid_value"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "fish"}}}},
            "response_format.json_schema.schema",
            "invalid_value",
        ),
        ({"tools": [{"type": "function", "function": {}}]}, "tools[0].function.name", "missing_required_parameter"),
        (
            {"tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "array"}}}]},
            "tools[0].function.parameters",
            "invalid_value",
        ),
        (
            {
                "tools": [{"type": "function", "function": {"name": "f"}}],
                "tool_choice": {"type": "function", "name": "g"},
            },
            "tool_choice",
            "invalid_value",
        ),
        ({"tool_choice": "required"}, "tool_choice", "invalid_value"),
        ({"server_tools": ["browser"]}, "server_tools[0]", "invalid_value"),
        ({"messages": [{"role": "user", "content": "x" * 5000}]}, "messages", "context_length_exceeded"),
        (
            {"messages": [{"role": "user", "content": "x" * 5000}], "stream": True},
            "messages",
            "context_length_exceeded",
        ),
    ],
)
async def test_a_wrong_field_is_a_400_that_names_it(
    cluster: Cluster, fields: dict[str, Any], param: str, code: str
) -> None:
    """In OpenAI's shape, before anything was generated, streamed or not."""
    answer = await chat(cluster, **fields)

    assert answer.status == 400, answer.text
    assert (answer.error["param"], answer.error["code"]) == (param, code)
    assert answer.error["type"] == "invalid_request_error"
    assert answer.headers["x-should-retry"] == "false"
    assert not cluster.worker.submits


async def test_too_long_a_prompt_says_by_how_much(cluster: Cluster) -> None:
    """In tokens."""
    answer = await chat(cluster, messages=[{"role": "user", "content": "x" * 5000}])
    assert "too many" in answer.error["message"]


@pytest.mark.parametrize(
    "body",
    [
        b"{",
        b"[]",
        b'"x"',
        b'{"model": "model", "messages": [{"role": "user", "content": "\xff"}]}',
        b'{"temperature": NaN}',
        b'{"model": "\\ud800"}',
        b"[" * 100_000,
        b'{"a":' * 100_000,
    ],
)
async def test_what_is_no_json_is_a_400(cluster: Cluster, body: bytes) -> None:
    """Whatever is wrong with the bytes."""
    answer = await ask(cluster.front.listening.http, CHAT, body)

    assert answer.status == 400
    assert answer.error["code"] == "invalid_json"


async def test_a_large_body_is_a_413(cluster: Cluster) -> None:
    """50 MB, with its size told or not; the router goes on serving."""
    large = b'{"model": "' + b"x" * (50 * 2**20) + b'"}'
    told = await ask(cluster.front.listening.http, CHAT, large)
    untold = await ask(cluster.front.listening.http, CHAT, iter([large[: 2**20]] * 20), method="POST")

    assert (told.status, untold.status) == (413, 413)
    assert told.error["code"] == "body_too_large"
    assert (await chat(cluster)).status == 200


async def test_unknown_paths_and_methods(cluster: Cluster) -> None:
    """In OpenAI's shape, too."""
    address = cluster.front.listening.http
    absent, wrong = await ask(address, "/v1/fish"), await ask(address, CHAT)

    assert (absent.status, absent.error["code"]) == (404, "unknown_url")
    assert (wrong.status, wrong.error["type"]) == (405, "invalid_request_error")


async def test_probes(cluster: Cluster) -> None:
    """The process lives, and is ready while a worker is."""
    address = cluster.front.listening.http
    assert (await ask(address, "/healthz")).status == 200
    assert (await ask(address, "/readyz")).json == {"status": "ok", "generate": True, "sessions": False}
    await chat(cluster)
    assert (
        'shoal_router_requests_total{code="OK",method="http.ChatCompletions"} 1.0'
        in (await ask(address, "/metrics")).text
    )
    await cluster.worker.stop()
    await until(lambda: not cluster.front.router.pool.eligible())
    assert (await ask(address, "/readyz")).status == 503
    assert (await ask(address, "/healthz")).status == 200


async def test_the_documentation_is_served(cluster: Cluster) -> None:
    """For programs and for people, from the same source and without anything from elsewhere."""
    address = cluster.front.listening.http
    document = (await ask(address, "/openapi.json")).json
    page = (await ask(address, "/docs")).text

    assert document["openapi"].startswith("3.1")
    assert "reasoning_effort" in document["components"]["schemas"]["ChatBody"]["properties"]
    for path in document["paths"]:
        assert path in page
    assert "://" not in page


async def test_without_redis_nothing_is_stored(cluster: Cluster) -> None:
    """Responses are answered and say so; who insists on storing is told."""
    address = cluster.front.listening.http
    made = await ask(address, "/v1/responses", {"model": "model", "input": "Hello?"})
    insisted = await ask(address, "/v1/responses", {"model": "model", "input": "Hello?", "store": True})

    assert (made.status, made.json["store"]) == (200, False)
    assert (insisted.status, insisted.error["code"]) == (503, "sessions_away")


async def test_a_full_router_says_when_to_come_back(start_cluster: StartCluster, tokenizer: Tokenizer) -> None:
    """429, before anything else is done."""
    cluster = await start_cluster(
        doing(Say((1,)), Hang()), http_port=0, model_name="model", max_running=1, max_waiting=0
    )
    first = asyncio.create_task(chat(cluster, stream=True))
    await until(lambda: bool(cluster.worker.running))
    second = await chat(cluster)

    assert (second.status, second.error["code"]) == (429, "queue_full")
    assert int(second.headers["retry-after"]) >= 1
    await cluster.front.router.stop(0)
    await first


async def test_stored_responses_are_every_routers(
    start_router: StartRouter, start_cluster: StartCluster, tokenizer: Tokenizer, redis_url: str
) -> None:
    """Created through one router, continued and read through another."""
    script = saying(ids_of(tokenizer, WORDS))
    cluster = await start_cluster(script, http_port=0, model_name="model", redis_url=redis_url)
    other = await start_router(http_port=0, model_name="model", redis_url=redis_url, workers=(cluster.worker.address,))
    here, there = cluster.front.listening.http, other.listening.http
    first = (await ask(here, "/v1/responses", {"model": "model", "input": "A"})).json
    continued = {"model": "model", "input": "B", "previous_response_id": first["id"]}
    second = await ask(there, "/v1/responses", continued)

    assert second.status == 200, second.text
    assert (await ask(there, f"/v1/responses/{first['id']}")).json == first
    prompt = tokenizer.decode([token for part in cluster.worker.submits[-1].prompt for token in part.ids])
    assert "user<|message|>A<|end|>" in prompt


async def test_while_redis_is_away_what_can_be_served_is(start_cluster: StartCluster, tokenizer: Tokenizer) -> None:
    """Chats go on; a response that nobody wants stored is answered and says that it is not; the rest is a 503 that
    says when to come back."""
    script = saying(ids_of(tokenizer, WORDS))
    cluster = await start_cluster(script, http_port=0, model_name="model", redis_url="unix:///nowhere/redis.sock")
    address, asked = cluster.front.listening.http, {"model": "model", "input": "Hello?"}
    talked = await chat(cluster)
    made = await ask(address, "/v1/responses", asked)
    refused = [
        await ask(address, "/v1/responses", {**asked, "store": True}),
        await ask(address, "/v1/responses", {**asked, "previous_response_id": "resp_x"}),
        await ask(address, "/v1/responses", {**asked, "background": True}),
        await ask(address, "/v1/responses/resp_x"),
    ]

    assert talked.status == 200
    assert (made.status, made.json["store"], made.json["warnings"][0]["code"]) == (200, False, "not_stored")
    assert [(answer.status, answer.error["code"]) for answer in refused] == [(503, "sessions_away")] * 4
    assert all(int(answer.headers["retry-after"]) >= 1 for answer in refused)


async def test_an_error_after_the_first_event_is_an_event(start_cluster: StartCluster, tokenizer: Tokenizer) -> None:
    """`error`, then `response.failed`, numbered like the others; a whole answer is a status."""
    begun = tuple(ids_of(tokenizer, "<|channel|>final<|message|>H"))
    cluster = await start_cluster(doing(Say(begun), Hang()), http_port=0, model_name="model", max_request_seconds=0.5)
    asked = {"model": "model", "input": "Hello?"}
    streamed = await ask(cluster.front.listening.http, "/v1/responses", {**asked, "stream": True})
    whole = await ask(cluster.front.listening.http, "/v1/responses", asked)

    assert streamed.status == 200
    assert ["error", "response.failed"] == [event["type"] for event in streamed.events[-2:]]
    assert list(range(len(streamed.events))) == [event["sequence_number"] for event in streamed.events]
    assert streamed.events[-1]["response"]["status"] == "failed"
    assert whole.status == 504
    assert "error" in whole.json


async def test_running_answers_end_well_when_the_router_stops(
    start_cluster: StartCluster, tokenizer: Tokenizer
) -> None:
    """What began before the end of a router is finished within its patience; what comes later is refused."""
    cluster = await start_cluster(saying(ids_of(tokenizer, WORDS), pause=0.02), http_port=0, model_name="model")
    running = asyncio.create_task(chat(cluster, stream=True))
    await until(lambda: bool(cluster.worker.running))
    await cluster.front.router.stop(5)
    answer = await running

    assert answer.text.endswith("data: [DONE]\n\n")
    with pytest.raises(OSError, match="refused"):
        await chat(cluster)


@pytest.mark.parametrize("stays", [True, False])
async def test_cutting_streams_off_at_the_end_of_a_router_is_no_fault(
    start_cluster: StartCluster, caplog: pytest.LogCaptureFixture, stays: bool
) -> None:
    """Whether their clients still listen or leave at that moment, nothing is logged as one; who listens is told why."""
    cluster = await start_cluster(doing(Say((65,)), Hang()), http_port=0, model_name="model")
    host, _, port = cluster.front.listening.http.rpartition(":")
    raw = json.dumps({"model": "model", "prompt": "x", "stream": True}).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: {len(raw)}\r\n\r\n"
    clients = []
    for _ in range(8):
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(head.encode() + raw)
        assert (await reader.readuntil(b"data: ")).startswith(b"HTTP/1.1 200")
        clients.append((reader, writer))
    stopping = asyncio.create_task(cluster.front.router.stop(0))
    if not stays:
        for _, writer in clients:
            writer.transport.abort()
    await stopping
    for reader, writer in clients:
        if stays:
            assert b"shutting down" in await reader.read()
        writer.close()

    assert [r.getMessage() for r in caplog.records if r.name.startswith("uvicorn") and r.levelname == "ERROR"] == []


async def test_an_unknown_model_is_a_404(start_cluster: StartCluster, tmp_path: Path) -> None:
    """For every API; without a name of its own the model is called like its directory."""
    write_tokenizer(tmp_path / "named")
    cluster = await start_cluster(saying([1]), http_port=0, model_dir=str(tmp_path / "named"))
    address = cluster.front.listening.http
    bodies: list[tuple[str, dict[str, Any]]] = [
        (CHAT, HELLO), ("/v1/completions", {"model": "model", "prompt": "x"}),
        ("/v1/responses", {"model": "model", "input": "x"}),
    ]  # fmt: skip
    for path, body in bodies:
        answer = await ask(address, path, body)
        assert (answer.status, answer.error["code"], answer.error["param"]) == (404, "model_not_found", "model"), path
    assert [m["id"] for m in json.loads((await ask(address, "/v1/models")).text)["data"]] == ["named"]
