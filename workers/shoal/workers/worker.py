"""One worker without Ray: an engine on its own thread, a gRPC server on another, and the group they belong to.

prepare      dense weights, KV cache, gRPC server                -> listening, in no epoch
stage        read the experts that an epoch will want            -> nobody notices
reconfigure  rest, change members and experts, self-test, go on  -> serves the new epoch, every sequence kept
drain, stop  take nothing new; refuse what is left, end the threads
"""

from __future__ import annotations

import hashlib
import os
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import structlog
import torch

from shoal.kernels import native
from shoal.kernels import target as targets
from shoal.proto.v1 import watch_pb2
from shoal.proto.v1 import worker_pb2 as pb
from shoal.proto.v1.constraint_pb2 import Constraint
from shoal.wire.tracing import Tracing
from shoal.workers.assemble import EngineSizes, assemble
from shoal.workers.checkpoint import Checkpoint, CheckpointError, open_checkpoint
from shoal.workers.checkpoint.reader import Reader, reading_threads
from shoal.workers.config import WorkerConfig
from shoal.workers.constraint.compiler import ConstraintCompiler
from shoal.workers.constraint.cursor import Cursor
from shoal.workers.engine.engine import Engine
from shoal.workers.errors import NotReadyError, StaleEpochError
from shoal.workers.experts.alarm import Alarm
from shoal.workers.experts.bank import ExpertBank, Staged, open_bank
from shoal.workers.experts.connect import connect_exchange
from shoal.workers.experts.copying import Giver
from shoal.workers.experts.faults import Fault, Faults, require
from shoal.workers.experts.group import EpochReport, GroupSpec, WorkerFacts
from shoal.workers.loop import EngineLoop, State
from shoal.workers.messages import sequence_from
from shoal.workers.metrics import MetricsServer, Readings
from shoal.workers.model import golden
from shoal.workers.model.moe import ExpertLayer
from shoal.workers.model.timing import Stopwatch
from shoal.workers.model.token_bytes import read_token_bytes
from shoal.workers.ports import candidates
from shoal.workers.report import report
from shoal.workers.selftest import SelfTest
from shoal.workers.server import WorkerServer
from shoal.workers.tracing import TracedPost

log = structlog.get_logger()

KERNEL_VERSION = 1
"""Raised whenever a kernel may give other bits than before."""


class Worker:
    """One rank. Implements `server.Service`: the gRPC thread calls submit, cancel, hang_up, woken, status and word."""

    def __init__(self, config: WorkerConfig) -> None:
        self.config = config
        self._target = targets.choose(config.device, int8=config.int8_activations, sampler=config.sampler)
        self._alarm = Alarm(config.tls)
        ports = candidates(config.port, config.first_port)
        giver = Giver(lambda: self._bank)
        self._server = WorkerServer(self, config.host, ports, config.outbox_limit, config.tls, giver)
        self._traced = TracedPost(self._server, Tracing.of("shoal-worker"), config.worker_id)
        self._metrics: MetricsServer | None = None
        self._welcome = pb.Welcome(worker_id=config.worker_id, group=config.group, protocol=1)
        self._checkpoint: Checkpoint | None = None
        self._engine: Engine | None = None
        self._loop: EngineLoop | None = None
        self._bank: ExpertBank | None = None
        self._self_test: SelfTest | None = None
        self._facts: WorkerFacts | None = None
        self._spec: GroupSpec | None = None
        self._changing = threading.Lock()  # held by whoever stages or changes the epoch
        self._wanted_epoch = 0
        self._lost_before = 0  # somebody of every epoch below this one is lost: its collectives cannot end
        self._entering_epoch = 0
        self._faults = Faults()
        self._start = Stopwatch()  # until the first epoch is served, then stopped
        self._read_ahead = (0, 0, 0)  # experts, those of them that peers gave, bytes read; since the last epoch
        self._constraints: ConstraintCompiler | None = None

    # -- life ---------------------------------------------------------------------------------------------------

    def prepare(self) -> WorkerFacts:
        """Load what every rank holds and listen. Raises CheckpointError, ConfigError."""
        start = time.monotonic()
        torch.set_num_threads(self.config.threads)
        if self._target.backend == "native":
            native.set_threads(self.config.threads)
        checkpoint = open_checkpoint(Path(self.config.model))
        device = self._target.device
        checkpoint.reader = Reader(device, reading_threads(device, self.config.threads))
        model_config, config = checkpoint.config, self.config
        tokenizer = checkpoint.tokenizer_path
        if tokenizer is None:
            raise CheckpointError(checkpoint.path, "has no tokenizer.json")
        with self._start.phase("vocabulary"):
            token_bytes = read_token_bytes(tokenizer, model_config.vocab_size)
            tokenizer_hash = hashlib.sha256(tokenizer.read_bytes()).hexdigest()
        self._constraints = ConstraintCompiler(token_bytes)
        warming = threading.Thread(target=self._constraints.warm_up, name="warm-up", daemon=True)
        warming.start()  # a second for a full vocabulary, spent while weights are read
        self._engine = assemble(checkpoint, self._target, EngineSizes.of(config), token_bytes, self._start)
        model, max_context = self._engine.model, self._engine.limits.max_context
        warming.join()
        self._checkpoint = checkpoint
        numerics_id = self._numerics_id(checkpoint)
        self._bank = open_bank(checkpoint, self._target, config, numerics_id, self._start)
        self._self_test = SelfTest(model, golden.find(checkpoint, config.golden), str(checkpoint.path))
        self._loop = EngineLoop(
            self._engine, self._alarm, self._traced, self._canary, config.canary_period, config.epoch_patience
        )
        self._server.start()
        self._loop.start()
        if config.metrics_port >= 0:
            self._metrics = MetricsServer(self._readings(), config.metrics_host, config.metrics_port)
        self._welcome.MergeFrom(
            pb.Welcome(
                numerics_id=numerics_id,
                max_context=max_context,
                vocab_size=model_config.vocab_size,
                eos_token_ids=model_config.eos_token_ids,
                tokenizer_hash=tokenizer_hash,
            )
        )
        seconds = time.monotonic() - start
        log.info(
            "worker prepared", worker=config.worker_id, address=self._server.address, kernels=self._target.kernel_class,
            kv_tokens=model.kv.plan.tokens, kv_bytes=model.kv.plan.bytes_total,
            seconds=round(seconds, 3), metrics=self._metrics.port if self._metrics else None,
        )  # fmt: skip
        self._facts = WorkerFacts(
            worker_id=config.worker_id,
            address=self._server.address,
            pid=os.getpid(),
            node_ip=config.host,
            num_layers=model_config.num_layers,
            num_experts=model_config.num_experts,
            numerics_id=numerics_id,
            kernel_path=self._target.kernel_class,
            tokenizer_hash=tokenizer_hash,
            bytes_read=checkpoint.bytes_read,
            seconds=seconds,
        )
        return self._facts

    def stage(self, spec: GroupSpec, patient: bool = True) -> int:
        """Get the experts that `spec` gives this rank, while it serves on; how many it lacked. `patient`: nobody waits.

        Raises NoRoomError, CheckpointError, StaleEpochError.
        """
        self._want(spec, entering=False)
        with self._changing:
            assert self._checkpoint is not None, "not prepared"
            before = self._checkpoint.bytes_read
            staged = self._stage(spec, patient)
            self._read_ahead = (staged.loaded, staged.copied, self._checkpoint.bytes_read - before)
            return staged.loaded

    def reconfigure(self, spec: GroupSpec, together: bool) -> EpochReport:
        """Serve `spec` from now on, with every weight, KV block and sequence that this rank has.

        All its members are told at once. `together`: the members of the epoch before are all alive and rest by
        agreement; else somebody is lost. A start is the same as a repair: there is no epoch before.

        Raises NoRoomError and CheckpointError, after which this rank serves its old epoch on if `together`; UnfitError
        and ExchangeError, after which it rests until a newer epoch comes; StaleEpochError for one that is not newer.
        """
        begin = time.monotonic()
        self._want(spec, entering=True)
        self._lost_before = self._lost_before if together else spec.epoch
        with self._changing:
            if self._checkpoint is None or self._engine is None or self._loop is None or self._bank is None:
                raise NotReadyError("prepare() comes before reconfigure()")
            read_before = self._checkpoint.bytes_read
            staged = self._stage(spec, patient=False)
            self._loop.pause(together, self.config.collective_timeout + 5.0)
            if self._loop.state is State.ENDED:
                raise NotReadyError(f"the engine has ended: {self._loop.why}")
            paused = time.monotonic()
            self._enter(spec, staged)
            self._loop.resume(spec.epoch)
            end = time.monotonic()
            (ahead, copied_ahead, bytes_ahead), self._read_ahead = self._read_ahead, (0, 0, 0)
            report = EpochReport(
                rank=spec.rank_of(self.config.worker_id),
                experts_held=staged.held,
                experts_loaded=staged.loaded + ahead,
                experts_copied=staged.copied + copied_ahead,
                bytes_read=self._checkpoint.bytes_read - read_before + bytes_ahead,
                pause=end - paused,
                seconds=end - begin,
            )
            log.info(
                "new epoch", worker=self.config.worker_id, epoch=spec.epoch, ep_size=spec.size, rank=report.rank,
                loaded=report.experts_loaded, copied=report.experts_copied, pause=round(report.pause, 4),
            )  # fmt: skip
            return report

    def describe(self) -> tuple[WorkerFacts | None, GroupSpec | None, int]:
        """What a controller that has forgotten everything must know: facts, epoch entered, last epoch asked for."""
        return self._facts, self._spec, self._wanted_epoch

    def inject(self, fault: Fault, seconds: float, amount: float) -> None:
        """Break this rank's exchange on purpose. Raises ExchangeError where that is not allowed."""
        require(self.config.chaos)
        self._faults.inject(fault, seconds, amount)

    def drain(self, wanted: bool = True) -> None:
        """Take nothing new, or take requests again; what runs goes on."""
        if self._loop is not None:
            self._loop.drain(wanted)

    def stop(self, grace: float = 0.0) -> None:
        """Refuse new requests, wait up to `grace` seconds for running ones, then end both threads. Safe to repeat."""
        loop = self._loop
        if loop is not None:
            loop.drain()
            deadline = time.monotonic() + grace
            while loop.busy and time.monotonic() < deadline:
                time.sleep(0.02)
            loop.stop(timeout=self.config.collective_timeout + 5.0)
        self._alarm.disconnect()
        self._server.stop()
        self._traced.close()
        if self._metrics is not None:
            self._metrics.close()
            self._metrics = None
        if self._checkpoint is not None:
            self._checkpoint.close()

    # -- called by the gRPC thread ------------------------------------------------------------------------------

    def welcome(self) -> pb.Welcome:
        """What this worker is."""
        return self._welcome

    def begin_constraint(self, constraint: Constraint, generated: Sequence[int]) -> Cursor:
        """Compile and replay. Takes up to seconds: called from threads of its own. Raises a WorkerError."""
        if self._constraints is None:
            raise NotReadyError("this worker is not prepared")
        return self._constraints.begin(constraint, generated)

    def submit(self, submit: pb.Submit, stream: str, constraint: Cursor | None) -> pb.Accepted:
        """Check and queue a request. Raises a WorkerError that says why not."""
        if self._loop is None:
            raise NotReadyError("this worker is not prepared")
        self._loop.submit(sequence_from(submit, self._welcome.vocab_size, stream, constraint))
        self._traced.begin(submit)
        return pb.Accepted(
            request_id=submit.request_id,
            attempt=submit.attempt,
            choice=submit.choice,
            numerics_id=self._welcome.numerics_id,
        )

    def cancel(self, cancel: pb.Cancel) -> None:
        """End a request before the next step."""
        if self._loop is not None:
            self._loop.cancel(cancel)

    def hang_up(self, stream: str) -> None:
        """A router's stream ended: nobody hears its sequences any more."""
        if self._loop is not None:
            self._loop.hang_up(stream)

    def woken(self, epoch: int, step: int) -> bool:
        """A peer begins a step."""
        return self._alarm.woken(epoch, step)

    def status_message(self) -> pb.GetStatusResponse:
        """The state as routers and people see it."""
        return report(self._welcome, self._target.kernel_class, self._engine, self._loop, self._start.seconds)

    def status(self) -> dict[str, Any]:
        """The same as plain values, for the controller."""
        message = self.status_message()
        return {
            "worker_id": self.config.worker_id,
            "rank": message.identity.rank,
            "epoch": message.identity.epoch,
            "ready": message.ready,
            "state": self._loop.state.name if self._loop is not None else State.IDLE.name,
            "failure": self._loop.why if self._loop is not None else "",
            "running": message.running,
            "waiting": message.waiting,
            "steps": message.steps,
            "generated_tokens": message.generated_tokens,
            "pid": message.pid,
        }

    def _readings(self) -> Readings:
        """For /metrics, asked by a thread of its own."""
        assert self._engine is not None, "no engine"
        assert self._loop is not None, "no loop"
        engine, loop = self._engine, self._loop
        return Readings(self.status_message, lambda: loop.state.name.lower(), lambda: engine.exchange.traffic)

    # -- small things ---------------------------------------------------------------------------------------------

    def word(self) -> watch_pb2.WatchResponse:
        """What this worker does, for those who watch it."""
        loop, engine = self._loop, self._engine
        if loop is None or engine is None:
            return watch_pb2.WatchResponse(state=watch_pb2.WORKER_STATE_IDLE)
        return watch_pb2.WatchResponse(
            state=loop.state.value,
            epoch=loop.epoch,
            why=loop.why,
            running=len(engine.running),
            waiting=len(engine.waiting),
            draining=loop.draining,
            leaving=loop.leaving,
            kv_used=engine.kv_used,
            queue_seconds=engine.queue_seconds(time.monotonic()),
        )

    def _want(self, spec: GroupSpec, entering: bool) -> None:
        """Whoever waits for members of an older epoch gives up. Raises StaleEpochError when this one is too old."""
        newest = max(self._wanted_epoch, self._entering_epoch + 1)
        if spec.epoch < newest:
            raise StaleEpochError(f"epoch {spec.epoch} is over: the next one is {newest}")
        self._wanted_epoch = spec.epoch
        if entering:
            self._entering_epoch = spec.epoch

    def _stage(self, spec: GroupSpec, patient: bool) -> Staged:
        if self._bank is None or self._facts is None:
            raise NotReadyError("prepare() comes before stage()")
        rank, sources = spec.rank_of(self.config.worker_id), [a for a in spec.sources if a != self._facts.address]
        wanted = [spec.placement.experts_of(layer, rank) for layer in range(spec.placement.num_layers)]
        return self._bank.stage(wanted, sources, patient)

    def _enter(self, spec: GroupSpec, staged: Staged) -> None:
        """Change epoch while the loop rests. Raises ExchangeError, UnfitError; the loop then rests on."""
        assert self._engine is not None, "no engine"
        assert self._bank is not None, "no bank"
        assert self._self_test is not None, "no self-test"
        engine, config = self._engine, self._engine.model.config
        engine.exchange.close()
        rank = spec.rank_of(self.config.worker_id)
        with self._start.phase("meet"):
            exchange = connect_exchange(
                spec, rank, config.experts_per_token, self.config.collective_timeout, self._target.device,
                unwanted=lambda: self._wanted_epoch > spec.epoch, over=lambda: self._lost_before > spec.epoch,
                faults=self._faults if self.config.chaos else None,
            )  # fmt: skip
        try:
            self._bank.commit(staged)
            views = staged.views()
            before = engine.model.experts or [None] * len(views)
            engine.model.experts = tuple(
                ExpertLayer(config, i, layer, exchange, old)
                for i, (layer, old) in enumerate(zip(views, before, strict=True))
            )
            if engine.decoder is not None:
                with self._start.phase("graphs"):
                    engine.decoder.record_all()
            with self._start.phase("self-test"):
                self._self_test.run(exchange, step=0)
        except Exception:
            exchange.close()
            raise
        engine.exchange = exchange
        engine.next_step = 0
        if self._spec is None:
            self._start.stop()
            log.info("worker started", worker=self.config.worker_id, **_rounded(self._start.seconds))
        self._spec = spec
        self._alarm.connect(spec.epoch, [m.address for m in spec.members if m.rank != rank])
        self._welcome.MergeFrom(pb.Welcome(rank=rank, ep_size=spec.size, epoch=spec.epoch))

    def _canary(self) -> None:
        """On the engine's thread, between two steps."""
        assert self._engine is not None, "no engine"
        assert self._self_test is not None, "no self-test"
        self._self_test.run(self._engine.exchange, self._engine.next_step)

    def _numerics_id(self, checkpoint: Checkpoint) -> str:
        parts = (self._target.kernel_class, str(self._target.dtype), str(KERNEL_VERSION), checkpoint.fingerprint)
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def _rounded(seconds: Mapping[str, float]) -> dict[str, float]:
    return {phase.replace("-", "_"): round(spent, 3) for phase, spent in seconds.items()}
