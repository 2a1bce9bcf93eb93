"""One bidirectional stream to one worker, kept up for as long as the worker is a member.

Submits and cancels go out, one message per engine step comes back and is dealt out to the requests. The end of the
stream is the fast sign of a worker's death: every request on it fails at once, and the link connects again with a
growing delay.
"""

from __future__ import annotations

import asyncio
import random
import traceback
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass, field, replace

import grpc
import grpc.aio
import structlog

from shoal.proto.v1 import worker_pb2 as pb
from shoal.proto.v1.worker_pb2_grpc import WorkerServiceStub
from shoal.router.errors import (
    LateError,
    WireError,
    WorkerFaultError,
    WorkerLeavingError,
    WorkerLostError,
    WorkersBusyError,
)
from shoal.router.fleet.backend import Accepted, ModelFacts, Tokens, Work
from shoal.router.fleet.inbox import Inbox
from shoal.router.fleet.policy import Load
from shoal.wire.credentials import open_channel
from shoal.wire.status import InvalidError
from shoal.wire.tls import INTERNAL_NAME, TlsConfig, internal_client

PROTOCOL = 1
"""Highest revision of worker.proto spoken here."""

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class LinkSettings:
    """What all links of a router share. Times are seconds."""

    router_id: str
    tokenizer_hash: str
    max_unread_tokens: int
    accept_seconds: float
    tls: TlsConfig = field(default_factory=TlsConfig)
    """How workers are reached; in the clear by default."""
    connect_seconds: float = 10.0


@dataclass(slots=True)
class _Sequence:
    """One sequence that runs on the worker for us."""

    attempt: int
    next_offset: int
    inbox: Inbox
    backlog: int  # tokens to compute before its next one
    accepted: bool = False
    over: bool = False  # it does not run there any more, so there is nothing to cancel


def reconnect_delay(failures: int, chance: float) -> float:
    """Seconds before connection attempt `failures` + 1; `chance` in [0, 1) spreads routers out.

    >>> reconnect_delay(1, 0.0), reconnect_delay(4, 0.0), reconnect_delay(40, 0.0)
    (0.05, 0.4, 2.0)
    """
    return min(2.0, 0.05 * 2.0 ** min(failures - 1, 10)) * (1.0 + 0.5 * chance)


class WorkerLink:
    """The router's end of one worker's stream. All methods belong to one event loop."""

    def __init__(self, address: str, settings: LinkSettings, on_change: Callable[[], None]) -> None:
        """`on_change` is called whenever the link comes up or goes down."""
        self.address = address
        self.welcome: pb.Welcome | None = None
        self.numerics_id = ""
        """What the worker computes with; kept while it is away, empty before it first came."""
        self.idle = asyncio.Event()
        """Set while nothing of ours runs there."""
        self.idle.set()
        self._settings = settings
        self._on_change = on_change
        self._sequences: dict[tuple[str, int], _Sequence] = {}
        self._outgoing: asyncio.Queue[pb.ConnectRequest] = asyncio.Queue()
        self._reported = Load(address)
        self._task = asyncio.create_task(self._keep_connected(), name=f"worker {address}")

    @property
    def connected(self) -> bool:
        """Whether work can be submitted."""
        return self.welcome is not None

    @property
    def load(self) -> Load:
        """For the choice of worker."""
        return replace(self._reported, own=len(self._sequences), backlog_own=self._backlog)

    @property
    def _backlog(self) -> int:
        return sum(sequence.backlog for sequence in self._sequences.values())

    @property
    def facts(self) -> ModelFacts | None:
        """What the worker said of its model."""
        if (welcome := self.welcome) is None:
            return None
        return ModelFacts(welcome.max_context, welcome.vocab_size, tuple(welcome.eos_token_ids))

    async def close(self) -> None:
        """Disconnect; requests still on it fail with WorkerLostError."""
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def submit(self, work: Work) -> AsyncGenerator[Accepted | Tokens, None]:
        """As `Backend.submit`, on this worker alone."""
        key = (work.request_id, work.choice)
        assert key not in self._sequences, f"{key} runs here already"
        if not self.connected:
            raise WorkerLostError(f"worker {self.address} is not connected")
        inbox = Inbox(self._settings.max_unread_tokens)
        backlog = sum(len(run.ids) for run in work.prompt)
        sequence = self._sequences[key] = _Sequence(work.attempt, work.start_offset, inbox, backlog)
        self.idle.clear()
        self._outgoing.put_nowait(pb.ConnectRequest(submit=work.message()))
        try:
            try:
                async with asyncio.timeout(self._settings.accept_seconds):
                    accepted = await inbox.get()
            except TimeoutError:
                wait = self._settings.accept_seconds
                raise WorkerLostError(f"worker {self.address} did not answer a submit within {wait:g} s") from None
            yield accepted
            finish = pb.SEQUENCE_FINISH_UNSPECIFIED
            while finish == pb.SEQUENCE_FINISH_UNSPECIFIED:
                output = await inbox.get()
                assert isinstance(output, Tokens), f"{key}: only the first output is not tokens"
                finish = output.finish
                if finish == pb.SEQUENCE_FINISH_CANCELLED:
                    yield replace(output, finish=pb.SEQUENCE_FINISH_UNSPECIFIED)
                    raise LateError(f"worker {self.address} ended the request at its deadline")
                yield output
        finally:
            del self._sequences[key]
            self._let_go(work, sequence.over)

    def hand_over(self, why: str) -> None:
        """Everything that runs here fails with WorkerLeavingError, after what has come already."""
        for sequence in self._sequences.values():
            sequence.inbox.fail(WorkerLeavingError(why))

    def serves(self, request_id: str) -> bool:
        """Whether a choice of the request runs there."""
        return any(name == request_id for name, _ in self._sequences)

    def _let_go(self, work: Work, over: bool) -> None:
        """A sequence left; unless it is over, the worker is told, of this choice alone."""
        if not over:
            cancel = pb.Cancel(request_id=work.request_id, attempt=work.attempt, choice=work.choice)
            self._outgoing.put_nowait(pb.ConnectRequest(cancel=cancel))
        if not self._sequences:
            self.idle.set()

    async def _keep_connected(self) -> None:
        failures = 0
        while True:
            try:
                await self._serve_one_stream()
                problem = "the worker ended the stream"
            except grpc.aio.AioRpcError as error:
                problem = f"{error.code().name}: {error.details()}"
            except (WireError, TimeoutError) as error:
                problem = str(error) or "no welcome in time"
            except Exception:  # a mistake of ours must not cost the worker for good
                problem = traceback.format_exc()
            finally:
                was_up = self._went_down()
            failures = 1 if was_up else failures + 1
            (_log.warning if was_up or failures == 1 else _log.debug)(
                "worker_disconnected", address=self.address, problem=problem
            )
            await asyncio.sleep(reconnect_delay(failures, random.random()))

    async def _serve_one_stream(self) -> None:
        """Connect, say hello, deal out what comes until the stream ends."""
        credentials = internal_client(self._settings.tls)  # read now: certificates are renewed
        async with open_channel(self.address, credentials=credentials, name=INTERNAL_NAME) as channel:
            call = WorkerServiceStub(channel).Connect()
            writer: asyncio.Task[None] | None = None
            try:
                async with asyncio.timeout(self._settings.connect_seconds):
                    hello = pb.Hello(router_id=self._settings.router_id, protocol=PROTOCOL)
                    await call.write(pb.ConnectRequest(hello=hello))
                    first = await call.read()
                self._outgoing = asyncio.Queue()
                self._came_up(first)
                writer = asyncio.create_task(self._write(call, self._outgoing))
                while isinstance(message := await call.read(), pb.ConnectResponse):
                    self._deal_out(message)
            finally:
                if writer is not None:
                    writer.cancel()
                    await asyncio.gather(writer, return_exceptions=True)
                call.cancel()

    @staticmethod
    async def _write(
        call: grpc.aio.StreamStreamCall[pb.ConnectRequest, pb.ConnectResponse],
        outgoing: asyncio.Queue[pb.ConnectRequest],
    ) -> None:
        """Send what is submitted and cancelled. A stream that cannot be written to is ended; the reader reports it."""
        try:
            while True:
                await call.write(await outgoing.get())
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
            pass
        finally:
            call.cancel()

    def _came_up(self, first: pb.ConnectResponse | object) -> None:
        if not isinstance(first, pb.ConnectResponse) or first.WhichOneof("message") != "welcome":
            raise WorkerFaultError(f"worker {self.address} did not begin with a welcome")
        welcome, ours = first.welcome, self._settings.tokenizer_hash
        if welcome.tokenizer_hash and welcome.tokenizer_hash != ours:
            hashes = f"{welcome.tokenizer_hash[:12]}… there, {ours[:12]}… here"
            raise WorkerFaultError(f"worker {self.address} has another tokenizer.json ({hashes})")
        if not 1 <= welcome.protocol <= PROTOCOL:
            raise WorkerFaultError(f"worker {self.address} speaks protocol {welcome.protocol}, not {PROTOCOL}")
        self._reported = Load(self.address)
        self.welcome, self.numerics_id = welcome, welcome.numerics_id
        _log.info(
            "worker_connected", address=self.address, worker=welcome.worker_id, group=welcome.group, rank=welcome.rank
        )
        self._on_change()

    def _went_down(self) -> bool:
        was_up, self.welcome = self.welcome is not None, None
        for sequence in self._sequences.values():
            sequence.over = True
            sequence.inbox.fail(WorkerLostError(f"the stream to worker {self.address} broke", retry_after_ms=200))
        if was_up:
            self._on_change()
        return was_up

    def _deal_out(self, message: pb.ConnectResponse) -> None:
        match message.WhichOneof("message"):
            case "step":
                for output in message.step.outputs:
                    self._deliver(output, message.step.epoch)
                self._report(message.step)
            case "accepted":
                taken = message.accepted
                assert self.welcome is not None, "messages are dealt out only while connected"
                sequence = self._find(taken.request_id, taken.choice, taken.attempt)
                if sequence is not None and not sequence.accepted:
                    sequence.accepted = True
                    sequence.inbox.put(Accepted(self.welcome.worker_id, taken.numerics_id))
            case "refused":
                refused = message.refused
                if (sequence := self._find(refused.request_id, refused.choice, refused.attempt)) is not None:
                    sequence.over = True
                    sequence.inbox.fail(error_of(refused, self.address))

    def _report(self, step: pb.Step) -> None:
        self._reported = Load(
            self.address, step.running + step.waiting, len(self._sequences), kv_used=step.kv_used,
            backlog_reported=step.backlog, backlog_own_at_report=self._backlog,
        )  # fmt: skip

    def _find(self, request_id: str, choice: int, attempt: int) -> _Sequence | None:
        """Ours, or None for one that was cancelled or belongs to an attempt that is over."""
        sequence = self._sequences.get((request_id, choice))
        return sequence if sequence is not None and sequence.attempt == attempt else None

    def _deliver(self, output: pb.SequenceOutput, epoch: int) -> None:
        if (sequence := self._find(output.request_id, output.choice, output.attempt)) is None:
            return
        if not sequence.accepted:
            sequence.inbox.fail(WorkerFaultError(f"worker {self.address} sent tokens before it accepted the work"))
            return
        if output.offset != sequence.next_offset:
            problem = f"worker {self.address} sent token {output.offset} where {sequence.next_offset} comes next"
            sequence.inbox.fail(WorkerFaultError(problem))
            return
        sequence.next_offset += len(output.ids)
        sequence.backlog = 0
        sequence.over = output.finish != pb.SEQUENCE_FINISH_UNSPECIFIED
        sequence.inbox.put(
            Tokens(
                offset=output.offset,
                ids=tuple(output.ids),
                logprobs=tuple(output.logprobs),
                finish=output.finish,
                cached_tokens=output.cached_tokens,
                likeliest=tuple(output.top_logprobs),
                attempt=output.attempt,
                epoch=epoch,
                numerics_id=self.numerics_id,
            )
        )


def error_of(refused: pb.Refused, address: str) -> WireError:
    """A worker's refusal as our error."""
    text = f"worker {address}: {refused.message or 'no reason given'}"
    match refused.reason:
        case pb.REFUSAL_REASON_INVALID:
            return InvalidError(refused.message or "the worker refused the request as invalid")
        case pb.REFUSAL_REASON_OVERLOADED:
            return WorkersBusyError(text, retry_after_ms=refused.retry_after_ms or None)
        case pb.REFUSAL_REASON_UNAVAILABLE:
            return WorkerLeavingError(text, retry_after_ms=refused.retry_after_ms or None)
        case _:
            return WorkerFaultError(text)
