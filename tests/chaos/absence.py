"""Redis is gone for a while: what runs goes on, what is asked meanwhile gets a clear answer, and nothing is lost.

python -m tests.chaos.absence --seconds 30      the long form, as `make chaos` runs it; adds rows to the record `chaos`

A router with sixteen turns of sessions and sixteen stateless streams, all of which go on from before Redis is killed
until after it is back. Meanwhile new requests come: stateless ones are served, those with a session are told when to
come back. Leases and whatever else expires does so in the middle.
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
from google.rpc import error_details_pb2

from shoal.proto.v1 import inference_pb2 as api
from shoal.proto.v1 import worker_pb2 as pb
from shoal.proto.v1.inference_pb2_grpc import InferenceServiceStub, SessionServiceStub
from shoal.router.config import RouterConfig
from shoal.router.fleet.scripted_worker import Action, Say, Script, ScriptedWorker
from shoal.router.limits.config import LimitsConfig
from shoal.router.server import Router
from shoal.router.tokenizer import Tokenizer
from shoal.wire import logs
from shoal.wire.details import read_details
from tests.bench.record import Row, add
from tests.chaos.killable import KillableRedis
from tests.router.byte_tokenizer import ids_of, write_tokenizer

STREAMS = 16
_BEFORE = 3  # turns of each session from before
_PAUSE = 0.2  # seconds between two words, and between two requests that come meanwhile


@dataclass
class Figures:
    """What happened."""

    seconds: float
    streams_failed: int = 0
    streams_different: int = 0
    meanwhile: Counter[str] = field(default_factory=Counter)
    """How requests that came while Redis was gone ended, by kind."""
    without_hint: int = 0
    """Of those refused, by session, how many were not told when to come back."""
    turns_lost: int = 0

    def rows(self) -> list[Row]:
        """For the record."""
        name = f"Redis gone for {self.seconds:g} s"
        refused = sum(count for kind, count in self.meanwhile.items() if kind != "stateless OK")
        wrong = sum(n for kind, n in self.meanwhile.items() if kind not in ("stateless OK", "session UNAVAILABLE"))
        return [
            Row(f"{name}: running streams failed", self.streams_failed, f"of {2 * STREAMS}", goal=0,
                met=not self.streams_failed),
            Row(f"{name}: running streams different", self.streams_different, f"of {2 * STREAMS}", goal=0,
                met=not self.streams_different),
            Row(f"{name}: stateless requests served meanwhile", self.meanwhile["stateless OK"], "requests"),
            Row(f"{name}: session requests refused with a hint", refused - self.without_hint, f"of {refused}",
                goal=refused, met=not self.without_hint),
            Row(f"{name}: other ends of requests meanwhile", wrong, "requests", goal=0, met=not wrong),
            Row(f"{name}: acknowledged turns lost", self.turns_lost, "turns", goal=0, met=not self.turns_lost),
        ]  # fmt: skip


def _script(tokenizer: Tokenizer, back: asyncio.Event) -> Script:
    """Says a word now and then for as long as Redis is away, if it was asked to be slow."""
    end = ids_of(tokenizer, " end<|return|>")

    async def script(submit: pb.Submit) -> AsyncIterator[Action]:
        prompt = tokenizer.decode([token for part in submit.prompt for token in part.ids])
        yield Say(tuple(ids_of(tokenizer, "<|channel|>final<|message|>begin")))
        while prompt.rpartition("user<|message|>")[2].startswith("slow") and not back.is_set():
            yield Say(tuple(ids_of(tokenizer, " x")))
            await asyncio.sleep(_PAUSE)
        yield Say(tuple(end[:-1]))
        yield Say((end[-1],), pb.SEQUENCE_FINISH_STOP_TOKEN)

    return script


async def run(folder: Path, seconds: float, lease_seconds: float) -> Figures:
    """Play it."""
    figures, back = Figures(seconds), asyncio.Event()
    tokenizer = Tokenizer.load(write_tokenizer(folder / "model"))
    redis = KillableRedis(folder / "redis")
    await asyncio.to_thread(redis.start)
    async with ScriptedWorker(_script(tokenizer, back)) as worker:
        router = Router(
            RouterConfig(
                str(folder / "model"), port=0, http_port=-1, metrics_port=-1, workers=(worker.address,),
                redis_url=redis.url, lease_seconds=lease_seconds, session_patience_seconds=seconds + 60.0,
                limits=LimitsConfig(enforced=True, concurrent=1000, tokens_per_minute=10_000_000),
            ),
            tokenizer,
        )  # fmt: skip
        try:
            listening = await router.start()
            async with grpc.aio.insecure_channel(listening.address) as channel:
                await _play(figures, channel, redis, back)
        finally:
            back.set()
            await router.stop(0)
            await asyncio.to_thread(redis.stop)
    return figures


async def _play(figures: Figures, channel: grpc.aio.Channel, redis: KillableRedis, back: asyncio.Event) -> None:
    names = [f"s{n}" for n in range(STREAMS)]
    for turn in range(_BEFORE):
        await asyncio.gather(*(_say(channel, f"quick {turn}", name) for name in names))
    running = [asyncio.create_task(_say(channel, "slow", name)) for name in [*names, *([""] * STREAMS)]]
    await asyncio.sleep(1.0)
    redis.kill()
    loop = asyncio.get_running_loop()
    until, n = loop.time() + figures.seconds, 0
    while loop.time() < until:
        n += 1
        for kind, name in (("stateless", ""), ("session", f"new{n}"), ("session", names[n % STREAMS])):
            await _ask(figures, channel, kind, name)
        await asyncio.sleep(_PAUSE)
    await asyncio.to_thread(redis.start)
    back.set()
    for outcome in await asyncio.gather(*running, return_exceptions=True):
        figures.streams_failed += isinstance(outcome, BaseException)
        figures.streams_different += isinstance(outcome, str) and not _whole(outcome)
    sessions: Any = SessionServiceStub(channel)
    for name in names:
        stored = await sessions.GetSession(api.GetSessionRequest(session_id=name))
        said = [item.message.content for item in stored.items if item.message.role == api.ROLE_USER]
        figures.turns_lost += len({"quick 0", "quick 1", "quick 2", "slow"} - set(said)) + (len(said) != _BEFORE + 1)


def _whole(answer: str) -> bool:
    return answer.startswith("begin") and answer.endswith(" end") and set(answer[5:-4].split()) <= {"x"}


async def _say(channel: grpc.aio.Channel, text: str, session: str) -> str:
    """One turn, to its `done`."""
    message = api.Message(role=api.ROLE_USER, content=text)
    answer, stub = "", InferenceServiceStub(channel)
    async for event in stub.Chat(api.ChatRequest(messages=[message], session_id=session), timeout=300):
        answer += event.text.text
    return answer


async def _ask(figures: Figures, channel: grpc.aio.Channel, kind: str, session: str) -> None:
    """A request while Redis is gone."""
    try:
        await _say(channel, "quick", session)
        figures.meanwhile[f"{kind} OK"] += 1
    except grpc.aio.AioRpcError as error:
        figures.meanwhile[f"{kind} {error.code().name}"] += 1
        hint = read_details(error.trailing_metadata(), error_details_pb2.RetryInfo)
        figures.without_hint += hint is None or hint.retry_delay.ToMilliseconds() <= 0


def main() -> None:
    """The long form."""
    parser = argparse.ArgumentParser(description="Take Redis away from a router under load.")
    parser.add_argument("--seconds", type=float, default=30.0)
    options = parser.parse_args()
    logs.configure("error")
    with tempfile.TemporaryDirectory() as folder:
        figures = asyncio.run(run(Path(folder), options.seconds, lease_seconds=15.0))
    print(figures)
    add("chaos", figures.rows())


if __name__ == "__main__":
    main()
