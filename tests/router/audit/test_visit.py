"""Everything that is asked is recorded, by whoever knows of it first; what cannot be recorded is not done."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from typer.testing import CliRunner

from shoal.cluster.commands.audit import app
from shoal.proto.v1 import inference_pb2 as api
from shoal.router.audit.config import AuditConfig
from shoal.router.audit.file import AuditFile, AuditFileError
from shoal.router.audit.log import AuditLog
from shoal.router.errors import StartError
from shoal.router.fleet.scripted_worker import saying
from shoal.router.harmony.builtin import PYTHON
from shoal.router.limits.config import LimitsConfig
from shoal.router.limits.policy import Policies, PolicyError
from shoal.router.tokenizer import Tokenizer
from shoal.router.tools.runner import ToolOutput
from shoal.router.tools.scripted import ScriptedTool
from tests.router.access.showing import Ring
from tests.router.byte_tokenizer import ids_of
from tests.router.conftest import Cluster, StartCluster, StartRouter
from tests.router.http.asking import ask
from tests.router.inference.test_tools import taking_turns
from tests.router.talking import events_of, user

WORDS = "<|channel|>final<|message|>Hi<|return|>"
TURN = {"model": "model", "input": "my words"}


def records(directory: Path) -> list[dict[str, Any]]:
    """All of a directory."""
    return [json.loads(line) for path in directory.glob("*.jsonl") for line in path.read_text().splitlines()]


def dead(cluster: Cluster) -> Callable[[], None]:
    """No record can be written any more; call it to mend that."""
    protection: Any = cluster.front.router._protection
    file = protection.trail._log._file
    whole = file.append

    def broken(records: Any) -> None:
        raise AuditFileError("no space left on device")

    file.append = broken
    return lambda: setattr(file, "append", whole)


@pytest.fixture
async def cluster(start_cluster: StartCluster, tokenizer: Tokenizer, tmp_path: Path, redis_url: str) -> Cluster:
    """A router with a trail that may not fail."""
    audit = AuditConfig(directory=str(tmp_path / "trail"))
    return await start_cluster(
        saying(ids_of(tokenizer, WORDS)), audit=audit, http_port=0, model_name="model", redis_url=redis_url
    )


async def code_of(call: Any) -> grpc.StatusCode:
    """How a call ends."""
    try:
        await call
    except grpc.aio.AioRpcError as error:
        return error.code()
    return grpc.StatusCode.OK


async def test_nothing_is_shown_or_changed_that_cannot_be_recorded(cluster: Cluster) -> None:
    """Neither API tells what is kept, and neither deletes or makes anything, while the trail cannot be written."""
    sessions: Any = cluster.front.sessions
    await events_of(cluster.front.inference.Chat(user("x", session_id="s")))
    address = cluster.front.listening.http
    response = (await ask(address, "/v1/responses", TURN)).json["id"]
    mend = dead(cluster)
    get, delete = api.GetSessionRequest(session_id="s"), api.DeleteSessionRequest(session_id="s")
    codes = [await code_of(call) for call in (
        sessions.GetSession(get), sessions.DeleteSession(delete),
        sessions.CreateSession(api.CreateSessionRequest(session_id="new")),
        sessions.ForkSession(api.ForkSessionRequest(session_id="s", new_session_id="copy")),
    )]  # fmt: skip
    path = f"/v1/responses/{response}"
    asked = (("GET", path), ("GET", f"{path}/input_items"), ("DELETE", path), ("POST", "/v1/responses"))
    answers = [await ask(address, path, TURN if method == "POST" else None, method) for method, path in asked]
    mend()

    assert codes == [grpc.StatusCode.UNAVAILABLE] * 4
    assert [(answer.status, answer.error["code"]) for answer in answers] == [(503, "audit")] * 4
    assert "my words" not in "".join(answer.text for answer in answers)
    listed = await sessions.ListSessions(api.ListSessionsRequest())
    assert sorted(info.session_id for info in listed.sessions) == sorted(["s", response])
    assert (await ask(address, path)).status == 200


async def test_a_change_is_recorded_before_it_is_made(cluster: Cluster, tmp_path: Path) -> None:
    """With what it is about; what only reads is recorded once."""
    sessions: Any = cluster.front.sessions
    await sessions.CreateSession(api.CreateSessionRequest(session_id="s"))
    await sessions.GetSession(api.GetSessionRequest(session_id="s"))
    await code_of(sessions.DeleteSession(api.DeleteSessionRequest(session_id="t")))
    await ask(cluster.front.listening.http, "/v1/responses/resp_x", None, "DELETE")
    told = [(r["kind"], r["method"], r["about"], r.get("outcome")) for r in records(tmp_path / "trail")]

    assert told == [
        ("accepted", "SessionService/CreateSession", "s", None),
        ("called", "SessionService/CreateSession", "s", "OK"),
        ("called", "SessionService/GetSession", "s", "OK"),
        ("accepted", "SessionService/DeleteSession", "t", None),
        ("called", "SessionService/DeleteSession", "t", "NOT_FOUND session_absent"),
        ("accepted", "http.DeleteResponse", "resp_x", None),
        ("called", "http.DeleteResponse", "resp_x", "NOT_FOUND response_absent"),
    ]


async def test_what_comes_to_nothing_is_recorded_too(
    start_cluster: StartCluster, tokenizer: Tokenizer, tmp_path: Path, redis_url: str
) -> None:
    """Requests that cannot be read, that are answered from what is stored, and looks at pages by who may not."""
    ring = Ring(tmp_path)
    cluster = await start_cluster(
        saying(ids_of(tokenizer, WORDS)), access=ring.config(), audit=AuditConfig(directory=str(tmp_path / "trail")),
        http_port=0, model_name="model", redis_url=redis_url,
    )  # fmt: skip
    address, shown = cluster.front.listening.http, f"Bearer {ring.shown['user']}"
    await ask(address, "/v1/chat/completions", {"model": "model", "messages": 7}, authorization=shown)
    await ask(address, "/metrics", None, authorization="Bearer noise")
    await ask(address, "/metrics", None, authorization=f"Bearer {ring.shown['admin']}")
    for _ in range(2):
        await ask(address, "/v1/responses", TURN, authorization=shown, idempotency_key="k")
    told = [(r["kind"], r["method"], r.get("outcome"), r.get("tenant")) for r in records(tmp_path / "trail")]

    assert told == [
        ("called", "http.ChatCompletions", "INVALID_ARGUMENT invalid_parameter", "acme"),
        ("called", "http.Metrics", "UNAUTHENTICATED credential", None),
        ("accepted", "InferenceService/Chat", None, "acme"),
        ("ended", "InferenceService/Chat", "OK", "acme"),
        ("called", "http.CreateResponse", "OK", "acme"),
    ]


async def test_a_trail_that_may_fail_lets_requests_through_and_says_how_many(
    start_cluster: StartCluster, tmp_path: Path, logged: Callable[[], str]
) -> None:
    """With "degrade": served, logged as an error, and counted in the next record."""
    cluster = await start_cluster(
        saying([1]), audit=AuditConfig(directory=str(tmp_path / "trail"), on_failure="degrade")
    )
    mend = dead(cluster)
    assert (await events_of(cluster.front.inference.Generate(api.GenerateRequest(text="x"))))[-1].HasField("done")
    mend()
    await events_of(cluster.front.inference.Generate(api.GenerateRequest(text="x")))

    assert [record.get("lost_before") for record in records(tmp_path / "trail")] == [2, None]
    assert logged().count("audit_record_lost") == 2


async def test_what_is_lost_while_others_are_written_is_counted_later(tmp_path: Path) -> None:
    """Those that are lost during a write are not part of what that write tells."""
    file = AuditFile(tmp_path / "r.jsonl", b"")
    log, whole = AuditLog(file, refuse=False), file.append

    def slowly(records: Any) -> None:
        log.lost += 5  # as too many that wait meanwhile would
        whole(records)

    log.lost = 2
    file.append = slowly  # type: ignore[method-assign]  # to look into it
    await log.write({"kind": "called"})
    file.append = whole  # type: ignore[method-assign]  # as before
    await log.write({"kind": "called"})
    await log.close()

    assert [record.get("lost_before") for record in records(tmp_path)] == [2, 5]


async def test_tools_are_recorded_as_agreed(start_cluster: StartCluster, tokenizer: Tokenizer, tmp_path: Path) -> None:
    """Which, with what, and what the server's gave; what functions are told to be is content, too."""
    secret, tenants = tmp_path / "enc", tmp_path / "tenants.toml"
    secret.write_bytes(b"e" * 32)
    tenants.write_text('[default]\naudit = "encrypt"\n')
    call = "<|channel|>commentary to=python <|constrain|>code<|message|>print(6*7)<|call|>"
    cluster = await start_cluster(
        taking_turns(tokenizer, call, WORDS), tools=[ScriptedTool(PYTHON, [ToolOutput("forty-two")])],
        audit=AuditConfig(directory=str(tmp_path / "trail"), encryption_key_file=str(secret)), model_name="model",
        limits=LimitsConfig(tenants_file=str(tenants)),
    )  # fmt: skip
    mail = api.Tool(name="mail", description="my own words")
    await events_of(cluster.front.inference.Chat(user("x", server_tools=["python"], tools=[mail])))
    await cluster.front.router.stop(0)
    written = (next((tmp_path / "trail").glob("*.jsonl"))).read_text()
    exported = CliRunner().invoke(app, ["export", str(tmp_path / "trail"), "--encryption-key", str(secret)])
    accepted, ended = (json.loads(line) for line in exported.stdout.splitlines())

    for said in ("print(6*7)", "forty-two", "my own words"):
        assert said not in written
    assert accepted["model"] == "model"
    assert "my own words" in accepted["prompt"]["text"]
    (used,) = ended["tools"]
    assert (used["name"], used["on_server"], used["failed"]) == ("python", True, False)
    assert (used["arguments"]["text"], used["result"]["text"]) == ("print(6*7)", "forty-two")


def test_a_trail_has_one_writer(tmp_path: Path) -> None:
    """Two would each cut off what the other wrote; the second says so, and may begin once the first ended."""
    first = AuditFile(tmp_path / "r.jsonl", b"")
    with pytest.raises(AuditFileError, match="another process"):
        AuditFile(tmp_path / "r.jsonl", b"")
    first.append([{"kind": "called"}])
    first.close()
    second = AuditFile(tmp_path / "r.jsonl", b"")
    second.append([{"kind": "called"}])
    second.close()

    assert [record["number"] for record in records(tmp_path)] == [1, 2]


async def test_routers_side_by_side_have_a_trail_each(start_router: StartRouter, tmp_path: Path) -> None:
    """In one directory, written at the same time: each verifies, and together they have everything."""
    audit = AuditConfig(directory=str(tmp_path / "trail"))
    fronts = [await start_router(audit=audit, router_id=f"router-{n}") for n in range(3)]
    with pytest.raises(StartError, match=r"audit\.directory.*another process"):
        await start_router(audit=audit, router_id="router-0")
    calls = [front.inference.ListModels(api.ListModelsRequest()) for front in fronts for _ in range(40)]
    await asyncio.gather(*calls)

    checked = CliRunner().invoke(app, ["verify", str(tmp_path / "trail")])
    assert checked.exit_code == 0
    assert checked.stdout.count("40 records, 0 problems") == 3


def test_what_shall_be_encrypted_needs_a_key(tmp_path: Path) -> None:
    """It is not hashed instead without a word: neither at the start nor when the file changes."""
    tenants = tmp_path / "tenants.toml"
    tenants.write_text("[acme]\nconcurrent = 1\n")
    policies = Policies(LimitsConfig(tenants_file=str(tenants)), encrypts=False)
    tenants.write_text('[acme]\naudit = "encrypt"\n')
    policies.refresh()
    assert policies.of("acme").concurrent == 1
    with pytest.raises(PolicyError, match=r"acme\.audit.*audit\.encryption_key_file"):
        Policies(LimitsConfig(tenants_file=str(tenants)), encrypts=False)
