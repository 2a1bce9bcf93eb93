"""More is asked for than can be served: what is served stays as fast, the rest is refused at once and told when to
come back."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import grpc
import grpc.aio
from google.rpc import error_details_pb2

from shoal.proto.v1 import inference_pb2 as api
from shoal.proto.v1 import worker_pb2 as pb
from shoal.router.admission import Admission
from shoal.router.errors import QueueFullError
from shoal.router.fleet.scripted_worker import Action, Say
from shoal.wire.details import read_details
from tests.router.conftest import StartCluster
from tests.router.http.asking import HELLO, ask
from tests.router.talking import events_of, trailing, until

PLACES, WAITING, SERVICE = 8, 8, 8  # a request takes 8 ticks, so one ends in each tick
CAPACITY = PLACES // SERVICE


class Server:
    """A router's admission before a worker of fixed speed, in ticks."""

    def __init__(self) -> None:
        self.tick = 0
        self.gate = Admission(PLACES, WAITING, lambda: float(self.tick))
        self.served, self.refused = Counter[int](), Counter[int]()
        self.waits: list[int] = []
        self.refusal_waits: list[int] = []

    async def client(self, tries: int) -> None:
        """Asks once, and again when it is told to, so many times."""
        for _ in range(tries):
            began, hint = self.tick, 0.0
            try:
                async with self.gate.admitted():
                    self.waits.append(self.tick - began)
                    await self._until(self.tick + SERVICE)
                    self.served[self.tick] += 1
                    return
            except QueueFullError as error:
                self.refused[self.tick] += 1
                self.refusal_waits.append(self.tick - began)
                hint = (error.retry_after_ms or 0) / 1000
            await self._until(self.tick + max(1, round(hint)))

    async def _until(self, tick: int) -> None:
        while self.tick < tick:  # noqa: ASYNC110  # time is counted, not slept
            await asyncio.sleep(0)

    async def run(self, ticks: int, arrivals: int, tries: int) -> set[asyncio.Task[None]]:
        """So many new clients in each tick."""
        clients = set()
        for _ in range(ticks):
            clients |= {asyncio.create_task(self.client(tries)) for _ in range(arrivals)}
            for _ in range(6):
                await asyncio.sleep(0)
            self.tick += 1
        return clients


async def test_five_times_too_much_costs_nobody_who_is_served() -> None:
    """Open loop, with clients that come back as they are told: what is served is at least 95 % of what can be, nobody
    waits longer than one service, every refusal is told in the tick in which it was asked."""
    server = Server()
    clients = await server.run(600, 5 * CAPACITY, tries=3)
    for client in clients:
        client.cancel()
    await asyncio.gather(*clients, return_exceptions=True)

    assert server.served.total() >= 0.95 * 600 * CAPACITY - PLACES
    assert (
        sorted(server.waits)[int(0.99 * len(server.waits))] <= SERVICE
    )  # so the first word comes within twice as long
    assert set(server.refusal_waits) == {0}
    assert server.refused.total() > 600


async def test_it_is_over_when_the_load_is() -> None:
    """Retries do not keep it up: soon after the last newcomer nobody waits, and the last who came back is served."""
    server = Server()
    clients = await server.run(120, 5 * CAPACITY, tries=50)
    at_end, behind = server.tick, sum(not client.done() for client in clients)
    while not all(client.done() for client in clients) and server.tick < at_end + 20 * behind:
        await server.run(1, 0, tries=0)
    settled = server.tick - at_end
    newcomer = await server.run(1, 1, tries=1)
    await server.run(SERVICE + 1, 0, tries=0)

    assert all(client.done() for client in clients)
    assert settled <= 2 * behind / CAPACITY  # at least half of the time something is served
    assert (server.gate.running, server.gate.waiting) == (0, 0)
    assert all(client.done() for client in newcomer)
    assert server.waits[-1] == 0


async def test_a_refusal_neither_waits_nor_reaches_a_worker(start_cluster: StartCluster) -> None:
    """Both APIs, while the worker says nothing at all: room for eight, everybody else is told when to come back."""
    going = asyncio.Event()

    async def script(submit: pb.Submit) -> AsyncIterator[Action]:
        await going.wait()
        yield Say((65,), pb.SEQUENCE_FINISH_LENGTH)

    cluster = await start_cluster(script, max_running=4, max_waiting=4, http_port=0, model_name="model")
    inference: Any = cluster.front.inference

    async def generate() -> grpc.aio.AioRpcError | None:
        try:
            await events_of(inference.Generate(api.GenerateRequest(text="x")))
        except grpc.aio.AioRpcError as error:
            return error
        return None

    served = [asyncio.create_task(generate()) for _ in range(8)]
    await until(lambda: cluster.front.router.admission.waiting == 4)
    refused = await asyncio.gather(*(generate() for _ in range(100)))  # the worker was not told to go on
    answers = await asyncio.gather(
        *(ask(cluster.front.listening.http, "/v1/chat/completions", HELLO) for _ in range(20))
    )
    reached = len(cluster.worker.submits)
    going.set()

    for error in refused:
        assert error is not None
        assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        hint = read_details(error.trailing_metadata(), error_details_pb2.RetryInfo)
        assert hint is not None
        assert hint.retry_delay.ToMilliseconds() == int(trailing(error)["grpc-retry-pushback-ms"]) >= 100
    assert {answer.status for answer in answers} == {429}
    assert all(int(answer.headers["retry-after"]) >= 1 for answer in answers)
    assert await asyncio.gather(*served) == [None] * 8
    assert reached <= 4
    assert len(cluster.worker.submits) == 8
    assert await generate() is None
