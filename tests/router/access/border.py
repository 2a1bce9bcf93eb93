"""Two tenants: whatever one tries with the names of the other's things, it gets what it would get for nobody's.

python -m tests.router.access.border 10000      the long form, as `make chaos` runs it; adds rows to the record `chaos`
"""

from __future__ import annotations

import asyncio
import random
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import grpc.aio

from shoal.proto.v1 import inference_pb2 as api
from shoal.proto.v1.inference_pb2_grpc import InferenceServiceStub, SessionServiceStub
from shoal.router.config import RouterConfig
from shoal.router.fleet.scripted_worker import ScriptedWorker, saying
from shoal.router.server import Router
from shoal.router.tokenizer import Tokenizer
from shoal.wire import logs
from tests.bench.record import Row, add
from tests.router.access.showing import Ring, make_key, write_keys
from tests.router.byte_tokenizer import ids_of, write_tokenizer
from tests.router.conftest import Front
from tests.router.http.asking import Answer, ask
from tests.router.store.servers import started
from tests.router.talking import trailing, user

SECRET = "acme's own words"
MINE, MY_REQUEST, NOBODYS = "my-session", "my-request", "not-there"
STRANGE = ("a}b", "a:b", "%2e", "../x", "*", "a b", "{acme:s}", "default", "acme:s", "ünï", "🐟")
WORDS = "<|channel|>final<|message|>the answer of acme<|return|>"


class Party:
    """One tenant's user."""

    def __init__(self, front: Front, key: str) -> None:
        self._front = front
        self.metadata = (("authorization", f"Bearer {key}"),)

    async def rpc(self, method: str, request: Any) -> Any:
        """A call: its answer, or its error as a client sees it."""
        front = self._front
        stub: Any = front.sessions if "Session" in method else front.inference
        call = getattr(stub, method)(request, metadata=self.metadata, timeout=10)
        try:
            if method in ("Chat", "Generate", "Resume"):
                return [event async for event in call]
            return await call
        except grpc.aio.AioRpcError as error:
            return error.code(), error.details(), trailing(error)["shoal-reason"]

    async def http(self, method: str, path: str, body: Any = None) -> Answer:
        """The same over HTTP."""
        return await ask(self._front.listening.http, path, body, method, None, authorization=self.metadata[0][1])


@dataclass
class Border:
    """What acme has, and the other tenant that tries to get it."""

    acme: Party
    other: Party
    sessions: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)
    responses: list[str] = field(default_factory=list)

    @classmethod
    async def between(cls, acme: Party, other: Party) -> Border:
        """With sessions of strange names, requests that can be resumed, and responses."""
        border = cls(acme, other)
        for number, name in enumerate((*STRANGE, MINE)):
            assert isinstance(await acme.rpc("Chat", user(SECRET, session_id=name, request_id=f"r{number}")), list), (
                name
            )
            border.sessions.append(name)
            border.requests.append(f"r{number}")
        for _ in range(3):
            made = await acme.http("POST", "/v1/responses", {"model": "model", "input": SECRET})
            border.responses.append(made.json["id"])
        return border

    async def tries(self, count: int, seed: int) -> Counter[str]:
        """Reads, resumptions, cancels and deletions, so many; those that gave anything, by kind."""
        draw, allowed = random.Random(seed), Counter[str]()
        for _ in range(count):
            kind = draw.choice(
                ("read", "resume", "delete", "fork", "read response", "cancel response", "delete response")
            )
            if not await self._refused(kind, draw):
                allowed[kind] += 1
        return allowed

    async def untouched(self) -> bool:
        """Whether everything of acme is as it was."""
        listed = await self.acme.rpc("ListSessions", api.ListSessionsRequest())
        read = [await self.acme.http("GET", f"/v1/responses/{name}") for name in self.responses]
        return len(listed.sessions) == len(self.sessions) + len(self.responses) and {a.status for a in read} == {200}

    async def _refused(self, kind: str, draw: random.Random) -> bool:
        """Whether it is told that there is no such thing, without a word of what there is."""
        if kind.endswith("response"):
            path = f"/v1/responses/{draw.choice(self.responses)}"
            methods = {"read": ("GET", ""), "cancel": ("POST", "/cancel"), "delete": ("DELETE", "")}
            method, rest = methods[kind.partition(" ")[0]]
            answer = await self.other.http(method, path + rest, {} if method == "POST" else None)
            return answer.status == 404 and answer.error["code"] == "response_absent" and SECRET not in answer.text
        name = draw.choice(self.requests if kind == "resume" else self.sessions)
        forms = (name, f"acme:{name}", f"{{acme:{name}}}", name.replace(":", "%3A"), f"shoal:session:{{acme:{name}}}")
        asked = draw.choice((name, *forms))
        request: Any
        match kind:
            case "read":
                method, request = "GetSession", api.GetSessionRequest(session_id=asked)
            case "delete":
                method, request = "DeleteSession", api.DeleteSessionRequest(session_id=asked)
            case "fork":
                method, request = "ForkSession", api.ForkSessionRequest(session_id=asked, new_session_id="copy")
            case _:
                method, request = "Resume", api.ResumeRequest(request_id=asked)
        told = await self.other.rpc(method, request)
        return isinstance(told, tuple) and told[0] is grpc.StatusCode.NOT_FOUND and SECRET not in str(told)


async def run(folder: Path, count: int) -> Counter[str]:
    """A router of its own, and so many tries. Returns those that gave anything."""
    tokenizer, ring = Tokenizer.load(write_tokenizer(folder / "model")), Ring(folder)
    (acme, acme_shown), (other, other_shown) = make_key("acme", "user"), make_key("other", "admin")
    write_keys(ring.file, acme, other)
    with started(folder / "redis") as redis:
        async with ScriptedWorker(saying(ids_of(tokenizer, WORDS))) as worker:
            config = RouterConfig(
                str(folder / "model"), port=0, http_port=0, metrics_port=-1, model_name="model",
                workers=(worker.address,), redis_url=f"redis://127.0.0.1:{redis.port}", access=ring.config(),
            )  # fmt: skip
            router = Router(config, tokenizer)
            try:
                listening = await router.start()
                async with grpc.aio.insecure_channel(listening.address) as channel:
                    front = Front(
                        router, listening, channel, InferenceServiceStub(channel), SessionServiceStub(channel)
                    )
                    border = await Border.between(Party(front, acme_shown), Party(front, other_shown))
                    allowed = await border.tries(count, seed=2)
                    assert await border.untouched(), "something of acme's changed"
            finally:
                await router.stop(0)
    return allowed


def main() -> None:
    """The long form."""
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 10_000
    logs.configure("error")
    with tempfile.TemporaryDirectory() as folder:
        allowed = asyncio.run(run(Path(folder), count))
    print(f"{count} tries across the border, allowed: {dict(allowed) or 'none'}")
    wrong = allowed.total()
    add("chaos", [Row("tries across tenants that gave anything", wrong, f"of {count}", goal=0, met=not wrong)])


if __name__ == "__main__":
    main()
