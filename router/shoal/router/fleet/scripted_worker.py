"""A worker that says what it is told to: the fake of the far side, over a real socket.

    async with ScriptedWorker(saying(ids)) as worker:
        RouterConfig(workers=(worker.address,), …)

A script is a function of the submit that yields actions; it runs once per sequence. Everything heard is recorded.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import grpc.aio

from shoal.proto.v1 import worker_pb2 as pb
from shoal.proto.v1.worker_pb2_grpc import WorkerServiceServicer, add_WorkerServiceServicer_to_server
from shoal.wire.credentials import add_port
from shoal.wire.options import server_options
from shoal.wire.tls import TlsConfig, internal_server

LENGTH = pb.SEQUENCE_FINISH_LENGTH
STOPPED = pb.SEQUENCE_FINISH_STOP_TOKEN


@dataclass(frozen=True, slots=True)
class Say:
    """One step's output of the sequence. `skip` leaves a gap before it, which is a fault."""

    ids: tuple[int, ...]
    finish: pb.SequenceFinish.ValueType = pb.SEQUENCE_FINISH_UNSPECIFIED
    logprobs: tuple[float, ...] = ()
    cached_tokens: int = 0
    skip: int = 0
    likeliest: tuple[tuple[tuple[int, float], ...], ...] = ()
    """Per id, the likeliest ids with their log-probabilities."""


@dataclass(frozen=True, slots=True)
class Refuse:
    """Refuse the sequence, or fail it after it was accepted."""

    reason: pb.RefusalReason.ValueType
    message: str = ""
    retry_after_ms: int = 0


@dataclass(frozen=True, slots=True)
class Hang:
    """Say nothing more; the sequence ends when it is cancelled."""


@dataclass(frozen=True, slots=True)
class Break:
    """End the stream of the router that asked, as a death would."""


Action = Say | Refuse | Hang | Break
Script = Callable[[pb.Submit], AsyncIterator[Action]]


def saying(ids: Sequence[int], *, step: int = 1, pause: float = 0.0) -> Script:
    """Says `ids`, `step` at a time with `pause` seconds between, and stops with the last; heeds `max_tokens`."""

    async def script(submit: pb.Submit) -> AsyncIterator[Action]:
        most = min(len(ids), submit.limits.max_tokens)
        for begin in range(0, most, step):
            chunk = tuple(ids[begin : min(begin + step, most)])
            over = begin + len(chunk) >= most
            finish = pb.SEQUENCE_FINISH_UNSPECIFIED if not over else (STOPPED if most == len(ids) else LENGTH)
            yield Say(chunk, finish)
            await asyncio.sleep(pause)

    return script


def doing(*actions: Action) -> Script:
    """The same actions for every sequence."""

    async def script(submit: pb.Submit) -> AsyncIterator[Action]:
        for action in actions:
            yield action

    return script


class ScriptedWorker(WorkerServiceServicer):
    """A `WorkerService` on a free port of loopback."""

    def __init__(self, script: Script, tls: TlsConfig | None = None, **welcome: Any) -> None:
        """`welcome` overrides fields of the greeting, such as `max_context=64`."""
        self._tls = tls or TlsConfig()
        self.script = script
        facts = {"worker_id": "scripted", "group": "g0", "ep_size": 1, "epoch": 1, "numerics_id": "scripted"}
        self._welcome = pb.Welcome(**{**facts, "max_context": 4096, "vocab_size": 512, "protocol": 1, **welcome})
        self.address = ""
        self.routers: list[str] = []
        """Names of the routers that connected."""
        self.submits: list[pb.Submit] = []
        self.cancels: list[pb.Cancel] = []
        self.running: set[tuple[str, int]] = set()
        self.heard = asyncio.Event()
        """Set with every submit and cancel; tests clear it."""
        self._server: grpc.aio.Server | None = None
        self._streams: set[asyncio.Queue[pb.ConnectResponse | None]] = set()
        self._steps = 0

    async def start(self, port: int = 0) -> str:
        """Listen; returns the address."""
        self._server = grpc.aio.server(options=server_options())
        add_WorkerServiceServicer_to_server(self, self._server)
        self.address = f"127.0.0.1:{add_port(self._server, '127.0.0.1', port, internal_server(self._tls))}"
        await self._server.start()
        return self.address

    async def stop(self) -> None:
        """Break every stream and stop listening."""
        if self._server is not None:
            await self._server.stop(0)

    async def __aenter__(self) -> ScriptedWorker:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    def break_streams(self) -> None:
        """End the streams of all routers; the worker goes on listening."""
        for outbox in self._streams:
            outbox.put_nowait(None)

    async def Connect(  # noqa: N802  # the generated base class names it
        self, request_iterator: AsyncIterator[pb.ConnectRequest], context: Any
    ) -> AsyncIterator[pb.ConnectResponse]:
        """See worker.proto."""
        outbox: asyncio.Queue[pb.ConnectResponse | None] = asyncio.Queue()
        self._streams.add(outbox)
        tasks: dict[tuple[str, int], list[asyncio.Task[None]]] = {}
        listening = asyncio.create_task(self._listen(request_iterator, outbox, tasks))
        try:
            while (message := await outbox.get()) is not None:
                yield message
        finally:
            self._streams.discard(outbox)
            for task in (listening, *(task for of_request in tasks.values() for task in of_request)):
                task.cancel()

    async def _listen(
        self,
        requests: AsyncIterator[pb.ConnectRequest],
        outbox: asyncio.Queue[pb.ConnectResponse | None],
        tasks: dict[tuple[str, int], list[asyncio.Task[None]]],
    ) -> None:
        async for request in requests:
            match request.WhichOneof("message"):
                case "hello":
                    self.routers.append(request.hello.router_id)
                    outbox.put_nowait(pb.ConnectResponse(welcome=self._welcome))
                case "submit":
                    self.submits.append(request.submit)
                    task = asyncio.create_task(self._play(request.submit, outbox))
                    tasks.setdefault((request.submit.request_id, request.submit.choice), []).append(task)
                case "cancel":
                    self.cancels.append(request.cancel)
                    for name in [name for name in tasks if _means(request.cancel, *name)]:
                        for task in tasks.pop(name):
                            task.cancel()
            self.heard.set()

    async def _play(self, submit: pb.Submit, outbox: asyncio.Queue[pb.ConnectResponse | None]) -> None:
        """Run the script of one sequence."""
        names: Any = {"request_id": submit.request_id, "attempt": submit.attempt, "choice": submit.choice}
        key, offset, accepted = (submit.request_id, submit.choice), submit.start_offset, False
        self.running.add(key)
        try:
            async for action in self.script(submit):
                if not accepted and isinstance(action, Say | Hang):
                    accepted = True
                    outbox.put_nowait(
                        pb.ConnectResponse(accepted=pb.Accepted(**names, numerics_id=self._welcome.numerics_id))
                    )
                match action:
                    case Say():
                        offset += action.skip
                        output = pb.SequenceOutput(
                            **names,
                            offset=offset,
                            ids=action.ids,
                            logprobs=action.logprobs,
                            top_logprobs=[
                                pb.TopLogprobs(top=[pb.TopLogprob(id=id_, logprob=logprob) for id_, logprob in rivals])
                                for rivals in action.likeliest
                            ],
                            finish=action.finish,
                            cached_tokens=action.cached_tokens,
                        )
                        offset += len(action.ids)
                        self._steps += 1
                        step = pb.Step(epoch=1, step=self._steps, outputs=[output], running=len(self.running))
                        outbox.put_nowait(pb.ConnectResponse(step=step))
                    case Refuse():
                        refused = pb.Refused(
                            **names,
                            reason=action.reason,
                            message=action.message,
                            retry_after_ms=action.retry_after_ms,
                        )
                        outbox.put_nowait(pb.ConnectResponse(refused=refused))
                        return
                    case Hang():
                        await asyncio.Event().wait()
                    case Break():
                        outbox.put_nowait(None)
                        return
        finally:
            self.running.discard(key)

    async def GetStatus(  # noqa: N802  # the generated base class names it
        self, request: pb.GetStatusRequest, context: Any
    ) -> pb.GetStatusResponse:
        """See worker.proto."""
        return pb.GetStatusResponse(identity=self._welcome, ready=True, steps=self._steps, running=len(self.running))

    async def Wake(  # noqa: N802  # the generated base class names it
        self, request: pb.WakeRequest, context: Any
    ) -> pb.WakeResponse:
        """See worker.proto."""
        return pb.WakeResponse(joined=request.epoch == self._welcome.epoch)


def _means(cancel: pb.Cancel, request_id: str, choice: int) -> bool:
    return cancel.request_id == request_id and (not cancel.HasField("choice") or cancel.choice == choice)
