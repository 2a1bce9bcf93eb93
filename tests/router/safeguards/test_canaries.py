"""Planted secrets of every kind are looked for wherever a router puts anything."""

from __future__ import annotations

import contextlib
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.message import DecodeError
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from shoal.proto.v1 import inference_pb2 as api
from shoal.proto.v1.journal_pb2 import JournalTokens, KeptMessage, RequestRecord
from shoal.router.audit.config import AuditConfig
from shoal.router.cache.answers import unpack
from shoal.router.harmony.builtin import PYTHON
from shoal.router.limits.config import LimitsConfig
from shoal.router.safeguards.config import SafeguardsConfig
from shoal.router.safeguards.detect import KINDS
from shoal.router.tokenizer import Tokenizer
from shoal.router.tools.runner import ToolOutput
from shoal.router.tools.scripted import ScriptedTool
from shoal.wire.tracing import Tracing
from tests.router.conftest import StartCluster
from tests.router.http.asking import ask
from tests.router.inference.test_tools import taking_turns
from tests.router.safeguards.corpus import MAKERS
from tests.router.safeguards.test_pipeline import all_of
from tests.router.talking import events_of, failed, user


def canaries(seed: int) -> dict[str, str]:
    """One of every kind."""
    draw = random.Random(seed)
    made = {kind: MAKERS[kind](draw) for kind in sorted(MAKERS)}
    while "\n" in made["key"]:
        made["key"] = MAKERS["key"](draw)
    return made


async def everything_in(client: Any, tokenizer: Tokenizer) -> dict[str, str]:
    """What is in a Redis, by key: as text, and token ids as the text that they stand for."""
    told: dict[str, str] = {}
    async for key in client.scan_iter():
        match await client.type(key):
            case b"string":
                parts = [await client.get(key)]
            case b"list":
                parts = await client.lrange(key, 0, -1)
            case b"hash":
                parts = [part for item in (await client.hgetall(key)).items() for part in item]
            case b"zset":
                parts = await client.zrange(key, 0, -1)
            case b"stream":
                parts = [repr(entry).encode() for entry in await client.xrange(key)]
            case kind:
                raise AssertionError(f"{key} is a {kind}")
        told[key.decode()] = "\n".join(part.decode("latin-1") + _ids_in(part, tokenizer) for part in parts)
    return told


def _ids_in(part: bytes, tokenizer: Tokenizer) -> str:
    found = ""
    for kind in (KeptMessage, JournalTokens, RequestRecord):
        try:
            message: Any = kind.FromString(part)
        except DecodeError:  # it is another message
            continue
        pieces = [message.piece.ids] if kind is KeptMessage else [message.ids] if kind is JournalTokens else []
        pieces += [piece.ids for piece in message.prompt] if kind is RequestRecord else []
        found += "".join(tokenizer.decode(ids) for ids in pieces)
    with contextlib.suppress(DecodeError):
        found += tokenizer.decode([token for entry in unpack(part) for token in entry.ids])
    return found


async def test_no_canary_is_found_anywhere(
    start_cluster: StartCluster,
    tokenizer: Tokenizer,
    redis_url: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    logged: Callable[[], str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Planted in prompts, tools, tool results and answers, over every way of asking, in requests that end well and in
    those that do not: not in logs, traces, metrics, the audit trail or Redis, while it runs and afterwards."""
    exporter, of = InMemorySpanExporter(), Tracing.of
    monkeypatch.setattr(Tracing, "of", staticmethod(lambda service: of(service, {}, exporter)))
    said, heard = canaries(1), canaries(2)
    prompt, answer = (" and ".join(f"my {kind} is {secret} ok" for kind, secret in c.items()) for c in (said, heard))
    turn = (
        f"<|channel|>analysis<|message|>{answer}<|end|><|start|>assistant<|channel|>final<|message|>{answer}<|return|>"
    )
    call = f"<|channel|>commentary to=python <|constrain|>code<|message|>print('{heard['email']}')<|call|>"
    tool = ScriptedTool(PYTHON, [ToolOutput(answer)])
    policies = tmp_path / "tenants.toml"
    policies.write_text("[default]\nresponse_cache = true\n")
    cluster = await start_cluster(
        taking_turns(tokenizer, call, turn),
        tools=[tool],
        safeguards=SafeguardsConfig(redact=tuple(sorted(KINDS)), deny=("kraken",)),
        audit=AuditConfig(directory=str(tmp_path / "audit"), usual="store"),
        limits=LimitsConfig(tenants_file=str(policies)),
        redis_url=redis_url, http_port=0, model_name="model", share_prefixes=True,
        welcome={"max_context": 65_536},
    )  # fmt: skip
    inference, address = cluster.front.inference, cluster.front.listening.http
    client: Any = cluster.front.router.redis.client
    seen: dict[str, str] = {}
    functions = [api.Tool(name="mail", description=prompt, parameters=json.dumps({"type": "object", "title": prompt}))]
    running = inference.Chat(user(prompt, session_id="s", server_tools=["python"], tools=functions))
    async for event in running:
        if event.HasField("tool_result"):
            seen |= {f"while it runs: {k}": v for k, v in (await everything_in(client, tokenizer)).items()}
    await events_of(inference.Chat(user(prompt, session_id="s", idempotency_key="k", request_id="named")))
    await events_of(inference.Generate(api.GenerateRequest(text=prompt, sampling=api.Sampling(temperature=0))))
    await events_of(inference.Chat(user(prompt, sampling=api.Sampling(temperature=0))))
    await failed(inference.Chat(user(f"{prompt} kraken")))
    await failed(inference.Chat(user(prompt, session_id="s", expected_turn=77)))
    await failed(
        inference.Chat(
            user(prompt, response_format=api.ResponseFormat(schema=prompt, kind=api.RESPONSE_FORMAT_KIND_JSON_SCHEMA))
        )
    )
    body = {"model": "model", "input": prompt, "instructions": prompt}
    for more in ({}, {"stream": True}, {"background": True}, {"metadata": {"note": prompt}, "store": True}):
        told = await ask(address, "/v1/responses", {**body, **more})
        assert told.status == 200, told.text
    await ask(address, "/v1/chat/completions", {"model": "model", "messages": [{"role": "user", "content": prompt}]})
    await ask(address, "/v1/completions", {"model": "model", "prompt": prompt})
    seen["metrics"] = (await ask(address, "/metrics")).text
    seen |= await everything_in(client, tokenizer)
    await cluster.front.router.stop(2)
    seen["traces"] = "".join(span.to_json() for span in exporter.get_finished_spans())
    seen["audit"] = all_of(tmp_path / "audit")
    output = capsys.readouterr()
    seen["logs"] = logged() + output.out + output.err

    assert tool.calls
    assert any(":log" not in key and "request" in key for key in seen)
    assert "[card]" in seen["audit"]
    assert "request_ended" in seen["logs"]
    assert "chat" in seen["traces"]
    assert any("my [card] is" in text or "[card]" in text for key, text in seen.items() if "session" in key)
    for kind, secret in [*said.items(), *heard.items()]:
        for where, text in seen.items():
            assert secret not in text, f"{kind} in {where}"
