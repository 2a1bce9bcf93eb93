"""A whole cluster in one place: real workers, controller, Redis and router, and clients that note when tokens came."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import grpc.aio

from shoal.cluster.controller import Controller
from shoal.cluster.group_state import GroupState, Phase, Policy, Stage
from shoal.cluster.registry_writer import RedisRegistry
from shoal.cluster.worker_watch import WorkerWatch
from shoal.proto.v1 import inference_pb2 as pb
from shoal.proto.v1.inference_pb2_grpc import InferenceServiceStub
from shoal.router.config import RouterConfig
from shoal.router.server import Router
from shoal.router.tokenizer import Tokenizer
from shoal.wire.tls import TlsConfig
from shoal.workers.experts.rendezvous import RendezvousServer
from tests.chaos.process_fleet import ProcessFleet

SCHEMA = '{"type": "object", "properties": {"fish": {"type": "string"}, "n": {"type": "integer"}}, "required": ["n"]}'


@dataclass
class Heard:
    """What one client heard: everything that must not depend on what happens to workers, and when it came."""

    said: list[Any] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    error: str = ""

    def pause_between(self, moment: float, until: float) -> float | None:
        """The longest silence that ended between the two, seconds; None when it did not run at `moment`. Not the first
        one: what was on its way at that moment still arrives."""
        if not self.times or not self.times[0] <= moment < self.times[-1]:
            return None
        return max((t - before for before, t in itertools.pairwise(self.times) if moment < t <= until), default=None)


def request(number: int, tokens: int) -> pb.GenerateRequest | pb.ChatRequest:
    """One of many kinds: raw and chat, greedy and seeded, free and held to a schema."""
    seeded = pb.Sampling(seed=number) if number % 2 else pb.Sampling(temperature=0.0, seed=number)
    limits = pb.Limits(max_tokens=tokens, ignore_eos=True)
    if number % 4 < 2:
        return pb.GenerateRequest(text=f"A shoal of {number} fish", sampling=seeded, limits=limits)
    chat = pb.ChatRequest(
        messages=[pb.Message(role=pb.ROLE_USER, content=f"Tell me of {number} fish.")],
        sampling=seeded, limits=pb.Limits(max_tokens=tokens),
    )  # fmt: skip
    if number % 8 >= 6:
        chat.response_format.kind = pb.RESPONSE_FORMAT_KIND_JSON_SCHEMA
        chat.response_format.schema = SCHEMA
        chat.reasoning_budget = tokens // 3
    return chat


class Town:
    """One group of workers behind one router, or with `routes=False` behind none yet. Use `town` to make it."""

    def __init__(self, model: Path, redis_url: str, ep_size: int, **settings: Any) -> None:
        policy = {key: settings.pop(key) for key in ("spares", "drain_timeout") if key in settings}
        self._routes = settings.pop("routes", True)
        # Whoever survives alone has a place for every stream: a pause shall be the repair's, not a queue's.
        self.fleet = ProcessFleet(model, **{"max_batch_size": 64, **settings})
        self.policy = Policy(**policy)
        self._redis_url = redis_url
        self._ep_size = ep_size
        config = RouterConfig(
            model_dir=str(model), redis_url=redis_url, port=0, http_port=-1, metrics_port=-1, registry_poll=0.1,
            max_running=256,
        )  # fmt: skip
        self.router = Router(config, Tokenizer.load(str(model)))
        self.controller = self._new_controller()
        self._channel: grpc.aio.Channel | None = None
        self._running: asyncio.Task[None] | None = None

    def _new_controller(self) -> Controller:
        state = GroupState("g0", self._ep_size, 0, time.monotonic() + 120.0, self.policy)
        return Controller(
            self.fleet, RedisRegistry(self._redis_url), WorkerWatch(TlsConfig()),
            lambda: RendezvousServer("127.0.0.1"), [state], heartbeat_timeout=2.0,
        )  # fmt: skip

    async def open(self) -> None:
        """Start everything; returns when requests are served."""
        self._running = asyncio.create_task(self.controller.run())
        await self.settled(within=60)
        if not self._routes:
            return
        listening = await self.router.start()
        self.channel = self._channel = grpc.aio.insecure_channel(listening.address)
        self.stub: Any = InferenceServiceStub(self.channel)
        while not self.router.pool.eligible():  # noqa: ASYNC110  # it polls the registry
            await asyncio.sleep(0.02)

    async def close(self) -> None:
        """Stop everything."""
        if self._running is not None:
            await self.controller.stop(0.0)
            await self._running
        if self._channel is not None:
            await self._channel.close()
            await self.router.stop(0)
        self.fleet.close()

    async def kill_controller(self) -> None:
        """End it at once, wherever it is; another takes over what it finds."""
        assert self._running is not None, "it does not run"
        while not self._running.done():  # a wait that ends in the same moment swallows the cancellation
            self._running.cancel()
            await asyncio.wait([self._running], timeout=0.01)
        self.controller = self._new_controller()
        self._running = asyncio.create_task(self.controller.run())

    @property
    def state(self) -> GroupState:
        """The group."""
        return self.controller.groups["g0"]

    @property
    def ranks(self) -> list[str]:
        """Names by rank."""
        return [hand.name for hand in self.state.members]

    @property
    def forgotten(self) -> list[str]:
        """Workers that live and that nobody knows of."""
        return sorted(set(self.fleet.workers) - {hand.name for hand in self.state.workers})

    async def settled(self, size: int | None = None, within: float = 30.0, without: str = "") -> None:
        """Until as many serve as are wanted, spares wait, and nobody comes or goes; `without` is not among them."""
        async with asyncio.timeout(within):
            while not self.is_settled(size) or without in self.ranks:  # noqa: ASYNC110  # nobody else is told
                await asyncio.sleep(0.005)

    def is_settled(self, size: int | None = None) -> bool:
        """Whether that is so now."""
        state = self.state
        whole = state.spec is not None and len(self.ranks) == state.spec.size == (size or state.ep_size)
        whole = whole and len(state.at(Stage.SPARE)) >= self.policy.spares
        return state.phase is Phase.READY and not state.broken and whole

    async def changed(self, epoch: int) -> None:
        """Until the epoch after this one serves."""
        while self.state.epoch == epoch or not self.is_settled():  # noqa: ASYNC110  # as above
            await asyncio.sleep(0.003)

    async def scale(self, ep_size: int) -> None:
        """Want another size."""
        self._ep_size = ep_size
        await self.controller.scale(ep_size, 1, self.policy, 0.0)

    async def hear(self, number: int, tokens: int) -> Heard:
        """Run one request and note what it says."""
        heard, asked = Heard(), request(number, tokens)
        try:
            if isinstance(asked, pb.GenerateRequest):
                async for event in self.stub.Generate(asked, timeout=120):
                    heard.times += [time.monotonic()] * (event.WhichOneof("event") == "tokens")
                    heard.said += event.tokens.ids
                    heard.said += [event.done.finish_reason] if event.HasField("done") else []
                    heard.error = event.error.message if event.HasField("error") else heard.error
            else:
                async for event in self.stub.Chat(asked, timeout=120):
                    kind = event.WhichOneof("event")
                    heard.times += [time.monotonic()] * (kind in ("text", "reasoning"))
                    heard.said += [kind, *(getattr(event, kind).text if kind in ("text", "reasoning") else "")]
                    heard.error = event.error.message if kind == "error" else heard.error
                heard.said = _words(heard.said)
        except grpc.aio.AioRpcError as error:
            heard.error = f"{error.code().name}: {error.details()}"
        return heard

    async def hear_all(self, numbers: Sequence[int], tokens: int) -> list[Heard]:
        """All at once."""
        return list(await asyncio.gather(*(self.hear(number, tokens) for number in numbers)))


def _words(said: list[str]) -> list[str]:
    """Pieces of one kind joined: where a piece ends depends on the engine's steps only."""
    joined: list[str] = []
    for item in said:
        if item in ("text", "reasoning") and joined and joined[0] == item:
            continue
        if item in ("text", "reasoning"):
            joined = [item, *joined]
        else:
            joined.append(item)
    return joined


@contextlib.asynccontextmanager
async def town(model: Path, redis_url: str, ep_size: int, **settings: Any) -> AsyncIterator[Town]:
    """A cluster that serves, closed at the end."""
    made = Town(model, redis_url, ep_size, **settings)
    try:
        await made.open()
        yield made
    finally:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(60):
                await made.close()
        made.fleet.close()
