"""What sessions cost: in Redis, with a thousand and with a hundred thousand of them; and in a router's latency.

python -m tests.bench.sessions      writes results/sessions.json

A session here has two turns of a user's 20 and a model's 100 tokens. The router's part is measured on whole turns of 32
tokens through gRPC, from a worker that says them as fast as it can: with credentials, quotas, session and journal
against none of them, and then with one of them at a time.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc.aio
from redis.exceptions import NoScriptError

from shoal.cluster.embedded_redis import EmbeddedRedis
from shoal.proto.v1 import inference_pb2 as api
from shoal.proto.v1.inference_pb2_grpc import InferenceServiceStub
from shoal.router.fleet.scripted_worker import ScriptedWorker, saying
from shoal.router.harmony.message import ChatMessage, Rendered
from shoal.router.sessions import scripts
from shoal.router.sessions.items import encode
from shoal.router.sessions.redis_store import RedisSessions, index_key, session_key
from shoal.router.sessions.store import StoredItem, Turn
from shoal.router.store.connect import connect
from shoal.router.store.script import Argument, Client
from shoal.router.tokenizer import Tokenizer
from tests.bench.record import Row, write
from tests.chaos.killable import KillableRouter
from tests.router.access.showing import make_key, write_keys
from tests.router.byte_tokenizer import ids_of, write_tokenizer

SAMPLES = 300
ROUNDS = 300
WARM = 20
WORDS = "<|channel|>final<|message|>{}<|return|>".format("x" * 29)  # 32 tokens with the control tokens


def turn(number: int) -> Turn:
    """20 tokens said, 100 answered."""
    said = ChatMessage("user", "a question of usual size", rendered=Rendered(tuple(range(1000, 1020))))
    answer = Rendered(tuple(range(50_000, 50_104)), 4, 104)
    heard = ChatMessage("assistant", "an answer " * 40, "final", rendered=answer)
    return Turn(number, (said, heard), f"writer-{number}", 3600, "2026-11-20")


async def store_rows(url: str, counts: Sequence[int]) -> list[Row]:
    """Reserve, append and load of single sessions among so many."""
    client = connect(url)
    store, rows, made = RedisSessions(client), [], 0
    first: dict[str, list[float]] = {}
    for count in counts:
        while made < count:
            batch = range(made, min(made + 500, count))
            await _make(client, batch)
            made = batch.stop
        measured: dict[str, list[float]] = {"reserve and load": [], "append": [], "load": []}
        samples = min(count, SAMPLES)
        for i in range(samples):
            name = f"s{i * count // samples}"
            session = await store.load("bench", name)
            assert session is not None, "it was made"
            number = session.info.next_turn
            measured["load"].append(await _seconds(store.load("bench", name)))
            measured["reserve and load"].append(await _seconds(store.reserve("bench", name, f"writer-{number}", 10)))
            measured["append"].append(await _seconds(store.append("bench", name, turn(number))))
        for what, times in measured.items():
            base = first.setdefault(what, times)
            ratio = statistics.median(times) / statistics.median(base)
            peer: dict[str, Any] = {}
            if base is not times:
                peer = {
                    "peer": f"the same among {counts[0]} sessions",
                    "peer_value": _micro(statistics.median(base)),
                    "ratio": round(ratio, 3),
                }
            rows.append(Row(f"{what}, {count} sessions, median", _micro(statistics.median(times)), "us", **peer))
            rows.append(Row(f"{what}, {count} sessions, 99th percentile", _micro(_p99(times)), "us"))
    memory: Any = await client.info("memory")
    rows.append(Row(f"memory of Redis per session, {counts[-1]} sessions", memory["used_memory"] // made, "bytes"))
    await client.aclose()
    return rows


async def _make(client: Client, numbers: range) -> None:
    """Sessions of two turns, in one round trip."""
    pipeline: Any = client.pipeline(transaction=False)
    items = [encode(StoredItem(message, t, f"writer-{t}")) for t in range(2) for message in turn(t).items]
    for i in numbers:
        key = session_key("bench", f"s{i}")
        arguments: list[Argument] = [2, 3600, "2026-11-20", "writer-1", "", *items]
        scripts.CREATE.queue(pipeline, [key, f"{key}:items", f"{key}:lease"], arguments)
        pipeline.zadd(index_key("bench"), {f"s{i}": i})
    answers = await pipeline.execute(raise_on_error=False)
    if any(isinstance(answer, NoScriptError) for answer in answers):
        untyped: Any = client
        await untyped.script_load(scripts.CREATE.text)
        await _make(client, numbers)


async def _seconds(work: Any) -> float:
    began = time.perf_counter()
    await work
    return time.perf_counter() - began


@dataclass(frozen=True)
class Arm:
    """A router with some of it on."""

    name: str
    router: KillableRouter
    session: bool
    secret: str

    def request(self, number: int) -> api.ChatRequest:
        """A turn; of a session of its own."""
        said = [api.Message(role=api.ROLE_USER, content="a question of usual size")]
        return api.ChatRequest(messages=said, session_id=f"{self.name}-{number}" if self.session else "")


async def router_rows(url: str, folder: Path, rounds: int) -> list[Row]:
    """Turns through routers with and without, taken in turn."""
    tokenizer = Tokenizer.load(write_tokenizer(folder / "model"))
    key, secret = make_key("bench", "user")
    write_keys(folder / "keys.json", key)
    async with ScriptedWorker(saying(ids_of(tokenizer, WORDS), step=4), max_context=8192) as worker:
        usual: dict[str, Any] = {"model_dir": str(folder / "model"), "workers": [worker.address]}
        access = {"required": True, "keys_file": str(folder / "keys.json")}
        limits = {"enforced": True, "requests_per_minute": 10**9, "tokens_per_minute": 10**9, "concurrent": 10**6}
        settings: dict[str, dict[str, Any]] = {
            "none": {},
            "all": {"redis_url": url, "access": access, "limits": limits},
            "credentials": {"access": access},
            "credentials and quotas": {"redis_url": url, "access": access, "limits": limits, "journal_seconds": 0},
            "session": {"redis_url": url, "journal_seconds": 0},
            "journal": {"redis_url": url},
        }
        arms = []
        for i, (name, given) in enumerate(settings.items()):
            router = KillableRouter(f"r{i}", folder, **usual, **given)
            await asyncio.to_thread(router.start)
            arms.append(Arm(name, router, name in ("all", "session"), secret if "access" in given else ""))
        try:
            first, whole = await _play(arms, rounds)
        finally:
            for arm in arms:
                arm.router.kill()
    rows = []
    for what, times in (("first token", first), ("whole turn", whole)):
        base = times["none"]
        for arm in arms[1:]:
            ratios = sorted(a / b for a, b in zip(times[arm.name], base, strict=True))
            rows.append(
                Row(
                    f"{what}, {arm.name} on",
                    _micro(statistics.median(times[arm.name])),
                    "us",
                    "none of it on",
                    _micro(statistics.median(base)),
                    round(statistics.median(ratios), 3),
                    (round(ratios[len(ratios) // 4], 3), round(ratios[-1 - len(ratios) // 4], 3)),
                )
            )
    return rows


async def _play(arms: Sequence[Arm], rounds: int) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """Seconds to the first text and to the end, by arm."""
    first: dict[str, list[float]] = {arm.name: [] for arm in arms}
    whole: dict[str, list[float]] = {arm.name: [] for arm in arms}
    channels = {arm.name: grpc.aio.insecure_channel(arm.router.address) for arm in arms}
    for number in range(rounds + WARM):
        for arm in arms:
            shown = (("authorization", f"Bearer {arm.secret}"),) if arm.secret else ()
            began, seen = time.perf_counter(), 0.0
            async for event in _chat(channels[arm.name], arm.request(number), shown):
                if not seen and event.HasField("text"):
                    seen = time.perf_counter() - began
            if number >= WARM:
                first[arm.name].append(seen)
                whole[arm.name].append(time.perf_counter() - began)
    for channel in channels.values():
        await channel.close()
    return first, whole


def _chat(channel: grpc.aio.Channel, request: api.ChatRequest, shown: Any) -> AsyncIterator[api.ChatResponse]:
    return InferenceServiceStub(channel).Chat(request, metadata=shown)  # type: ignore[return-value]  # it is one


def _micro(seconds: float) -> float:
    return round(seconds * 1e6, 1)


def _p99(times: Sequence[float]) -> float:
    return sorted(times)[int(len(times) * 0.99)]


def main() -> None:
    """Measure and write the record."""
    parser = argparse.ArgumentParser(description="What sessions cost.")
    parser.add_argument("--sessions", type=int, nargs="+", default=[1_000, 100_000])
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--dry", action="store_true", help="write no record")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, EmbeddedRedis(Path(name) / "redis", max_memory_mb=2048) as redis:
        rows = asyncio.run(router_rows(redis.url, Path(name), options.rounds))
        rows += asyncio.run(store_rows(redis.url, options.sessions))
    if options.dry:
        for row in rows:
            print(row.case, row.value, row.unit, row.ratio)
        return
    notes = [
        "latency: smaller is better, and ratio is with over without, so 1.2 is a fifth more",
        "one client, one turn after the other; client, worker and all routers share the machine",
        "a session has two turns of 20 tokens said and 100 answered",
    ]
    write("sessions", rows, notes)


if __name__ == "__main__":
    main()
