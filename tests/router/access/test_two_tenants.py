"""Two tenants, every method of both APIs: what belongs to one cannot be told by the other from what is not there."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest

from shoal.proto.v1 import inference_pb2 as api
from shoal.router.access.table import ALLOWED, FOR_EVERYBODY
from shoal.router.fleet.scripted_worker import saying
from shoal.router.tokenizer import Tokenizer
from tests.router.access.border import MINE, MY_REQUEST, NOBODYS, SECRET, Border, Party
from tests.router.access.showing import Ring, make_key, write_keys
from tests.router.byte_tokenizer import ids_of
from tests.router.conftest import Cluster, StartCluster
from tests.router.talking import failed, user

WORDS = "<|channel|>final<|message|>the answer of acme<|return|>"
NO_CONTENT = {"InferenceService/ListModels", "http.ListModels", "http.GetModel", "http.Metrics"}
"""Methods without anything that belongs to a tenant."""


@pytest.fixture
async def parties(
    start_cluster: StartCluster, tokenizer: Tokenizer, tmp_path: Path, redis_url: str
) -> tuple[Cluster, Party, Party]:
    """A router, and the users of acme and of another tenant; the other is even an admin."""
    ring = Ring(tmp_path)
    (acme, acme_shown), (other, other_shown) = make_key("acme", "user"), make_key("other", "admin")
    write_keys(ring.file, acme, other)
    cluster = await start_cluster(
        saying(ids_of(tokenizer, WORDS)), access=ring.config(), http_port=0, model_name="model", redis_url=redis_url
    )
    return cluster, Party(cluster.front, acme_shown), Party(cluster.front, other_shown)


def without(name: str, told: Any) -> Any:
    """An answer without the name that was asked for."""
    return json.loads(json.dumps(told, default=str).replace(name, "NAME"))


async def test_every_method_shows_nothing_of_another_tenant(parties: tuple[Cluster, Party, Party]) -> None:
    """Asked for what acme has, each answers the other tenant exactly as for what nobody has; acme's stays as it is."""
    cluster, acme, other = parties
    await acme.rpc("Chat", user(SECRET, session_id=MINE, request_id=MY_REQUEST))
    created = (await acme.http("POST", "/v1/responses", {"model": "model", "input": SECRET})).json
    running = await acme.http("POST", "/v1/responses", {"model": "model", "input": SECRET, "background": True})
    before = await acme.rpc("GetSession", api.GetSessionRequest(session_id=MINE))
    response, background = created["id"], running.json["id"]
    covered = set(NO_CONTENT)
    told: list[Any] = []

    async def same(method: str, theirs: Any, nobodys: Any, name: str, nobody: str) -> None:
        told.append(theirs)
        covered.add(method)
        assert without(nobody, nobodys) == without(name, theirs), method

    makes: dict[str, Callable[[str], Any]] = {
        "GetSession": lambda name: api.GetSessionRequest(session_id=name),
        "DeleteSession": lambda name: api.DeleteSessionRequest(session_id=name),
        "ForkSession": lambda name: api.ForkSessionRequest(session_id=name, new_session_id="copy"),
    }
    for method, make in makes.items():
        theirs, nobodys = await other.rpc(method, make(MINE)), await other.rpc(method, make(NOBODYS))
        assert theirs[0] is grpc.StatusCode.NOT_FOUND, method
        await same(f"SessionService/{method}", theirs, nobodys, MINE, NOBODYS)
    resumed = [await other.rpc("Resume", api.ResumeRequest(request_id=name)) for name in (MY_REQUEST, NOBODYS)]
    assert resumed[0][0] is grpc.StatusCode.NOT_FOUND
    await same("InferenceService/Resume", resumed[0], resumed[1], MY_REQUEST, NOBODYS)
    listed = await other.rpc("ListSessions", api.ListSessionsRequest())
    assert list(listed.sessions) == []
    covered.add("SessionService/ListSessions")

    for name, nobody in ((MINE, NOBODYS), (response, f"{response[:-1]}x")):
        conflict = [await other.rpc("Chat", user("x", session_id=n, expected_turn=1)) for n in (name, nobody)]
        await same("InferenceService/Chat", conflict[0], conflict[1], name, nobody)
        prompts = [
            await other.rpc("Tokenize", api.TokenizeRequest(chat=user("x", session_id=n))) for n in (name, nobody)
        ]
        await same("InferenceService/Tokenize", list(prompts[0].ids), list(prompts[1].ids), name, nobody)
    submitted = len(cluster.worker.submits)
    chatted = await other.rpc("Chat", user("x", session_id=MINE))
    assert chatted[0].started.turn == 0
    assert SECRET.encode() not in _prompts(cluster, submitted)
    made = await other.rpc("CreateSession", api.CreateSessionRequest(session_id="s2"))
    covered.add("SessionService/CreateSession")
    told += [chatted, made]
    told.append(await other.rpc("Generate", api.GenerateRequest(text="x", request_id=MY_REQUEST)))
    covered.add("InferenceService/Generate")

    for method, http, path in (
        ("http.GetResponse", "GET", "/v1/responses/{}"),
        ("http.ListInputItems", "GET", "/v1/responses/{}/input_items"),
        ("http.CancelResponse", "POST", "/v1/responses/{}/cancel"),
        ("http.DeleteResponse", "DELETE", "/v1/responses/{}"),
    ):
        for name in (response, background):
            nobody = f"{name[:-1]}{'0' if name[-1] != '0' else '1'}"
            answers = [await other.http(http, path.format(n), {} if http == "POST" else None) for n in (name, nobody)]
            assert answers[0].status == 404, method
            shown = [(a.status, a.text) for a in answers]
            await same(method, shown[0], shown[1], name, nobody)
    nobody = f"{response[:-1]}{'0' if response[-1] != '0' else '1'}"
    bodies = [{"model": "model", "input": "x", "previous_response_id": n} for n in (response, nobody)]
    continued = [await other.http("POST", "/v1/responses", body) for body in bodies]
    assert continued[0].status == 400
    await same("http.CreateResponse", continued[0].text, continued[1].text, response, nobody)
    for path, name in (("/v1/chat/completions", "http.ChatCompletions"), ("/v1/completions", "http.Completions")):
        body = {"model": "model", "prompt": "x"} if path.endswith("/completions") and "chat" not in path else None
        chat_body = {"model": "model", "messages": [{"role": "user", "content": "x"}]}
        told.append((await other.http("POST", path, body or chat_body)).text)
        covered.add(name)

    assert SECRET not in str(told)
    after = await acme.rpc("GetSession", api.GetSessionRequest(session_id=MINE))
    assert list(before.items) == list(after.items)
    assert (await acme.http("GET", f"/v1/responses/{response}")).status == 200
    assert {method for method in ALLOWED if method not in FOR_EVERYBODY and not ours(method)} == covered


def ours(method: str) -> bool:
    """Of the cluster, which belongs to no tenant: see `test_operations`."""
    return method.startswith("AdminService/")


def _prompts(cluster: Cluster, begin: int) -> bytes:
    """What workers were given since."""
    ids = [i for submit in cluster.worker.submits[begin:] for part in submit.prompt for i in part.ids]
    return bytes(i for i in ids if i < 256)


async def test_no_name_reaches_across(parties: tuple[Cluster, Party, Party]) -> None:
    """Whatever a name is made of, both may use it and neither sees the other's: of hundreds of reads, resumptions,
    cancels and deletions of all kinds none is allowed. `make chaos` tries ten thousand."""
    cluster, acme, other = parties
    border = await Border.between(acme, other)
    assert await border.tries(300, seed=1) == Counter()
    _, error = await failed(_chat(cluster, other, "a\0b"))
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert await border.untouched()


def _chat(cluster: Cluster, party: Party, session: str) -> Any:
    stub: Any = cluster.front.inference
    return stub.Chat(user("x", session_id=session), metadata=party.metadata)


async def test_prefix_caches_are_apart(parties: tuple[Cluster, Party, Party]) -> None:
    """The same prompt of two tenants has two names in the workers' caches; that of one tenant has one."""
    cluster, acme, other = parties
    for party in (acme, acme, other):
        await party.rpc("Chat", user("the same"))
    salts = [submit.cache_salt for submit in cluster.worker.submits]

    assert salts[0] == salts[1] != salts[2]
    assert all(len(salt) == 16 for salt in salts)
    assert b"acme" not in salts[0]
