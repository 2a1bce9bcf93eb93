"""Sixty-four conversations while Redis and the routers are killed: every acknowledged turn is there, exactly once.

python -m tests.chaos.sessions --kills 40      the long form, as `make chaos` runs it; adds rows to the record `chaos`

Two router processes and a Redis process are killed with SIGKILL at random moments, one after the other, and started
again at the same address. Each client talks to a random router, says something that names its session and turn, and
waits for `done`: from then on the turn counts as acknowledged. After an error it reads the session to learn where it
is, as any client would, and says the turn again if it is not there.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import grpc.aio

from shoal.proto.v1 import inference_pb2 as api
from shoal.proto.v1 import worker_pb2 as pb
from shoal.proto.v1.inference_pb2_grpc import InferenceServiceStub, SessionServiceStub
from shoal.router.fleet.scripted_worker import Action, Say, ScriptedWorker
from shoal.router.tokenizer import Tokenizer
from tests.bench.record import Row, add
from tests.chaos.killable import Killable, KillableRedis, KillableRouter
from tests.router.byte_tokenizer import ids_of, write_tokenizer

CLIENTS = 64
_PAUSE = 0.004  # seconds between two tokens
_NOT_FOUND = grpc.StatusCode.NOT_FOUND


@dataclass
class Conversation:
    """One client and what it knows."""

    name: str
    acknowledged: list[str] = field(default_factory=list)
    """The answers of the turns whose `done` it saw, and of those that it found stored; by turn."""
    told: int = 0
    """Turns whose `done` it saw."""
    errors: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True)
class Figures:
    """What happened."""

    turns: int
    told: int
    kills: Counter[str]
    errors: Counter[str]
    seconds: float

    def __str__(self) -> str:
        kills = ", ".join(f"{count} x {name}" for name, count in sorted(self.kills.items()))
        errors = ", ".join(f"{count} x {name}" for name, count in sorted(self.errors.items())) or "none"
        return (
            f"{CLIENTS} clients, {self.turns} turns stored ({self.told} acknowledged by done) in {self.seconds:.1f} s; "
            f"killed {kills}; errors that clients saw: {errors}; lost 0, twice 0"
        )

    def rows(self) -> list[Row]:
        """For the record. What `run` asserts is told as it was asserted."""
        return [
            Row("sessions: acknowledged turns", self.told, "turns"),
            Row("sessions: turns stored", self.turns, "turns"),
            Row("sessions: acknowledged turns lost", 0, "turns", goal=0, met=True),
            Row("sessions: turns there twice", 0, "turns", goal=0, met=True),
            *(Row(f"sessions: kills of {name}", count, "kills") for name, count in sorted(self.kills.items())),
        ]


def answer_to(text: str) -> str:
    """What the model says to a text."""
    return f"heard {text}"


async def run(folder: Path, kills: int, seed: int) -> Figures:
    """Play until `kills` processes were killed and every client went on after that. Raises AssertionError when a turn
    is lost, there twice, or not what was said."""
    rng, began = random.Random(seed), time.monotonic()
    tokenizer = Tokenizer.load(write_tokenizer(folder / "model"))
    redis = KillableRedis(folder / "redis")
    await asyncio.to_thread(redis.start)
    async with ScriptedWorker(_echo(tokenizer), max_context=8192) as worker:
        settings = {
            "model_dir": str(folder / "model"),
            "workers": [worker.address],
            "redis_url": redis.url,
            "lease_seconds": 2.0,
        }
        routers = [KillableRouter(f"router{i}", folder, **settings) for i in range(2)]
        for router in routers:
            router.begin()
        try:
            for router in routers:
                await asyncio.to_thread(router.wait)
            over = asyncio.Event()
            conversations = [Conversation(f"s{i}") for i in range(CLIENTS)]
            talking = [asyncio.create_task(_talk(c, routers, over, seed)) for c in conversations]
            killed = await _kill(rng, [redis, *routers], kills, talking)
            over.set()
            await asyncio.gather(*talking)
            turns = await _verify(conversations, routers[0].address)
        finally:
            for router in routers:
                router.kill()
            await asyncio.to_thread(redis.stop)
    errors = sum((c.errors for c in conversations), Counter())
    return Figures(turns, sum(c.told for c in conversations), killed, errors, time.monotonic() - began)


def _echo(tokenizer: Tokenizer):  # type: ignore[no-untyped-def]  # a Script
    async def script(submit: pb.Submit) -> AsyncIterator[Action]:
        prompt = tokenizer.decode([token for part in submit.prompt for token in part.ids])
        heard = prompt.rpartition("<|start|>user<|message|>")[2].partition("<|end|>")[0]
        ids = ids_of(tokenizer, f"<|channel|>final<|message|>{answer_to(heard)}<|return|>")
        for token in ids[submit.start_offset : -1]:
            yield Say((token,))
            await asyncio.sleep(_PAUSE)
        yield Say((ids[-1],), pb.SEQUENCE_FINISH_STOP_TOKEN)

    return script


async def _kill(
    rng: random.Random, victims: Sequence[Killable], kills: int, talking: Sequence[asyncio.Task[None]]
) -> Counter[str]:
    """Kill one after the other, each kind in turn, at random moments; each is back before the next one dies."""
    killed: Counter[str] = Counter()
    for i in range(kills):
        await asyncio.sleep(rng.uniform(0.2, 1.0))
        for task in talking:
            if task.done():
                task.result()
        victim = victims[i % len(victims)] if i < len(victims) else rng.choice(victims)
        victim.kill()
        killed[victim.name] += 1
        await asyncio.sleep(rng.uniform(0.0, 0.5))
        await asyncio.to_thread(victim.start)
    return killed


async def _talk(conversation: Conversation, routers: Sequence[KillableRouter], over: asyncio.Event, seed: int) -> None:
    """Say turn after turn until it is over; the last turn is finished in any case."""
    rng = random.Random(f"{seed} {conversation.name}")
    after = 2  # turns that are said once nobody is killed any more
    while after:
        after -= over.is_set()
        turn = len(conversation.acknowledged)
        while len(conversation.acknowledged) == turn:
            address = rng.choice(routers).address
            async with grpc.aio.insecure_channel(address) as channel:
                try:
                    await _say(conversation, turn, channel)
                except grpc.aio.AioRpcError as error:
                    conversation.errors[error.code().name] += 1
                    await asyncio.sleep(rng.uniform(0.05, 0.3))
                    await _find_out(conversation, turn, routers, rng)


async def _say(conversation: Conversation, turn: int, channel: grpc.aio.Channel) -> None:
    request = api.ChatRequest(
        messages=[api.Message(role=api.ROLE_USER, content=f"{conversation.name}/{turn}")],
        session_id=conversation.name,
        expected_turn=turn,
    )
    answer, done = "", False
    async for event in InferenceServiceStub(channel).Chat(request, timeout=60):
        answer += event.text.text
        done = done or event.HasField("done")
    assert done, "a stream that ends well ends with done"
    conversation.acknowledged.append(answer)
    conversation.told += 1


async def _find_out(
    conversation: Conversation, turn: int, routers: Sequence[KillableRouter], rng: random.Random
) -> None:
    """Whether the turn was stored although its `done` did not arrive."""
    while True:
        async with grpc.aio.insecure_channel(rng.choice(routers).address) as channel:
            try:
                stored = await SessionServiceStub(channel).GetSession(
                    api.GetSessionRequest(session_id=conversation.name), timeout=10
                )
            except grpc.aio.AioRpcError as error:
                if error.code() is _NOT_FOUND:
                    assert turn == 0, f"{conversation.name}: {turn} acknowledged turns are lost"
                    return
                await asyncio.sleep(rng.uniform(0.05, 0.3))
                continue
        assert stored.session.next_turn >= turn, f"{conversation.name} has lost an acknowledged turn"
        if stored.session.next_turn > turn:
            conversation.acknowledged.append(stored.items[-1].message.content)
        return


async def _verify(conversations: Sequence[Conversation], address: str) -> int:
    """Every conversation is what its client was told, turn by turn, and nothing else. Returns the turns."""
    turns = 0
    async with grpc.aio.insecure_channel(address) as channel:
        stub = SessionServiceStub(channel)
        for conversation in conversations:
            stored = await stub.GetSession(api.GetSessionRequest(session_id=conversation.name), timeout=10)
            said = [item.message.content for item in stored.items]
            expected: list[str] = []
            for turn, answer in enumerate(conversation.acknowledged):
                assert answer == answer_to(f"{conversation.name}/{turn}"), f"another answer was acknowledged: {answer}"
                expected += [f"{conversation.name}/{turn}", answer]
            assert said == expected, f"{conversation.name}: stored {said}, acknowledged {expected}"
            assert [item.turn for item in stored.items] == [turn for turn in range(len(said) // 2) for _ in "ab"]
            turns += len(conversation.acknowledged)
    return turns


def main() -> None:
    """The long form."""
    parser = argparse.ArgumentParser(description="Kill Redis and routers during 64 conversations.")
    parser.add_argument("--kills", type=int, default=40)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        figures = asyncio.run(run(Path(folder), options.kills, options.seed))
    print(figures)
    add("chaos", figures.rows())


if __name__ == "__main__":
    main()
