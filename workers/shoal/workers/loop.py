"""The engine's own thread: takes what arrived, steps, hands the news out, sleeps when the whole group has no work.

Between two epochs it rests: it goes on taking requests, cancels and deadlines, and computes nothing.

    IDLE -> SERVING <-> PAUSED     the group agreed to rest before a step
                    <-> BROKEN     the exchange broke; every sequence is kept, the step never happened
            any     ->  ENDED      it was told to stop, or failed
"""

from __future__ import annotations

import queue
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from enum import Enum
from functools import partial
from typing import Protocol

import structlog

from shoal.proto.v1 import watch_pb2
from shoal.proto.v1 import worker_pb2 as pb
from shoal.workers.engine.engine import Engine
from shoal.workers.engine.output import Output
from shoal.workers.engine.sequence import Finish, Sequence
from shoal.workers.errors import ExchangeError, NotReadyError, StaleAttemptError, UnfitError
from shoal.workers.experts.alarm import Alarm
from shoal.workers.experts.exchange import Wish
from shoal.workers.messages import kv_events_from, step_messages

log = structlog.get_logger()

ATTEMPTS_REMEMBERED = 4096

_LOOK = 0.05
"""Seconds between two looks at what arrived while the loop rests."""


class State(Enum):
    """What the loop does."""

    IDLE = watch_pb2.WORKER_STATE_IDLE
    SERVING = watch_pb2.WORKER_STATE_SERVING
    PAUSED = watch_pb2.WORKER_STATE_PAUSED
    BROKEN = watch_pb2.WORKER_STATE_BROKEN
    UNFIT = watch_pb2.WORKER_STATE_UNFIT
    ENDED = watch_pb2.WORKER_STATE_ENDED


class Post(Protocol):
    """How messages leave the worker. Called from the engine's thread; never waits."""

    def send(self, stream: str, message: pb.ConnectResponse) -> None: ...

    def hand_over(self, build: Callable[[], Mapping[str, pb.ConnectResponse]]) -> None:
        """Build messages on the server's own thread, then send each to its stream."""
        ...

    def broadcast(self, message: pb.ConnectResponse) -> None:
        """To every stream that asked for KV events."""
        ...

    def announce(self) -> None:
        """The worker's state changed: tell those who watch it."""
        ...


class EngineLoop:
    """Runs one engine through one epoch after another.

    Every sequence that `submit` took is answered: by tokens and a finish, or by one refusal.
    """

    def __init__(
        self,
        engine: Engine,
        alarm: Alarm,
        post: Post,
        canary: Callable[[], None] = lambda: None,
        canary_period: float = 0.0,
        patience: float = 30.0,
    ) -> None:
        """`canary` repeats the self-test, together with all ranks, every `canary_period` seconds (0: never), and may
        raise UnfitError. `patience`: seconds that requests wait for the next epoch before they are refused."""
        self.engine = engine
        self.epoch = 0
        self.state = State.IDLE
        self.why = "in no group yet"
        self.draining = False
        self._alarm = alarm
        self._post = post
        self._canary = canary
        self._canary_period = canary_period
        self._next_canary = 0.0
        self._patience = patience
        self._inbox: queue.SimpleQueue[Sequence | pb.Cancel | str] = queue.SimpleQueue()
        self._gate = threading.Lock()  # a sequence is either refused or in the inbox before the loop's last look
        self._open = False
        self._resting = threading.Condition()
        self._rests = False
        self._resumed = False
        self._pause_asked = False
        self._abandoned = False
        self._stopping = False
        self._attempts: OrderedDict[tuple[str, int], int] = OrderedDict()
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    @property
    def busy(self) -> bool:
        """Whether anything is queued or running."""
        return not self._inbox.empty() or self.engine.has_work

    @property
    def leaving(self) -> bool:
        """Whether it was told to stop."""
        return self._stopping

    def start(self) -> None:
        """Begin to rest, until the first epoch."""
        self._thread.start()

    def submit(self, sequence: Sequence) -> None:
        """Queue a sequence. Raises NotReadyError, StaleAttemptError, OverloadedError, RequestError."""
        with self._gate:
            if self.draining:
                raise NotReadyError("this worker is about to leave: try another")
            if not self._open:
                raise NotReadyError(self.why or "this worker is shutting down")
            self.engine.check(sequence, backlog=self._inbox.qsize())
            self._check_attempt(sequence)
            sequence.waits_since = time.monotonic()
            self._inbox.put(sequence)
        self._alarm.ring()

    def cancel(self, cancel: pb.Cancel) -> None:
        """End a request before the next step."""
        self._inbox.put(cancel)
        self._alarm.ring()

    def hang_up(self, stream: str) -> None:
        """Nobody listens to `stream` any more: its sequences end; only a trace of them tells."""
        self._inbox.put(stream)
        self._alarm.ring()

    def drain(self, wanted: bool = True) -> None:
        """Take nothing new; what runs goes on. Or, with False, take requests again."""
        with self._gate:
            self.draining = wanted
        self._post.announce()

    def pause(self, together: bool, timeout: float) -> None:
        """Bring the loop to rest between two steps; engine and exchange then belong to the caller until `resume`.

        `together`: with all ranks of the epoch, by agreement. Else without them: somebody is lost, no collective can
        succeed any more. Raises ExchangeError when it does not come to rest in time.
        """
        with self._resting:
            self._pause_asked, self._abandoned = True, not together
        self._alarm.ring()
        with self._resting:
            if not self._resting.wait_for(lambda: self._rests, timeout):
                raise ExchangeError(f"this rank did not come to rest within {timeout:g} s")

    def resume(self, epoch: int) -> None:
        """Serve `epoch` with the engine as the caller left it."""
        with self._resting:
            assert self._rests, "only a resting loop is changed"
            self.epoch, self._resumed = epoch, True
            self._pause_asked = self._abandoned = self._rests = False
            self._resting.notify_all()

    def stop(self, timeout: float) -> None:
        """End after the current step and refuse what is left; the other ranks rest then. Safe to repeat."""
        with self._gate:
            self._open = False
        with self._resting:
            self._stopping = self._pause_asked = True
            self._resting.notify_all()
        self._alarm.ring()
        self._post.announce()
        if self._thread.is_alive():
            self._thread.join(timeout)

    # -- the thread -----------------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            self._rest(State.IDLE, self.why)
            while self._await_epoch():
                self._serve()
            self._end("this worker is leaving", pb.REFUSAL_REASON_UNAVAILABLE)
        except Exception as error:  # whatever it was, every accepted request must still be answered
            log.exception("the engine failed")
            self._end(f"the engine failed: {error}", pb.REFUSAL_REASON_INTERNAL)
        finally:
            self.engine.exchange.close()

    def _serve(self) -> None:
        """One epoch."""
        engine = self.engine
        try:
            while not self._abandoned:
                self._drain()
                result = engine.step(self._wishes())
                self._publish(result.outputs, result.step)
                if Wish.PAUSE in result.wishes:
                    self._rest(State.PAUSED, "the group rests until its next epoch")
                    return
                if Wish.CANARY in result.wishes:
                    self._canary()
                    self._next_canary = time.monotonic() + self._canary_period
                if result.idle and not engine.has_work:
                    engine.check_integrity()
                    self._alarm.sleep(engine.next_step, self._until_canary())
            self._rest(State.PAUSED, "the group is given up")
        except ExchangeError as error:
            log.warning("the expert exchange broke", epoch=self.epoch, error=str(error))
            self._rest(State.BROKEN, f"the expert exchange broke: {error}")
        except UnfitError as error:
            log.error("the self-test failed", epoch=self.epoch, error=str(error))
            self._rest(State.UNFIT, str(error))
            self._refuse_all(str(error), pb.REFUSAL_REASON_UNAVAILABLE)

    def _wishes(self) -> Wish:
        wishes = Wish.PAUSE if self._pause_asked else Wish.NONE
        if self._canary_period and time.monotonic() >= self._next_canary:
            self._next_canary = time.monotonic() + self._canary_period
            wishes |= Wish.CANARY
        return wishes

    def _until_canary(self) -> float | None:
        return max(0.0, self._next_canary - time.monotonic()) if self._canary_period else None

    def _rest(self, state: State, why: str) -> None:
        with self._resting:
            self.state, self.why = state, why
            self._rests = True
            self._resting.notify_all()
        self._post.announce()

    def _await_epoch(self) -> bool:
        """Rest until an epoch comes; False when none will."""
        give_up: float | None = time.monotonic() + self._patience
        while True:
            with self._resting:
                if not self._resumed and not self._stopping:
                    self._resting.wait(_LOOK)
                if self._stopping:
                    return False
                if self._resumed:
                    self._resumed = False
                    self.state, self.why = State.SERVING, ""
                    break
            self._drain()
            self._publish(self.engine.tell(), self.engine.next_step)
            if give_up is not None and self._open and time.monotonic() > give_up:
                give_up = None
                why = f"no new epoch within {self._patience:g} s after: {self.why}"
                self._refuse_all(why, pb.REFUSAL_REASON_UNAVAILABLE)
        self._next_canary = time.monotonic() + self._canary_period
        with self._gate:
            self._open = not self._stopping
        self._post.announce()
        return True

    def _drain(self) -> None:
        """Take everything that arrived since the last step."""
        while not self._inbox.empty():
            item = self._inbox.get()
            if isinstance(item, Sequence):
                self.engine.submit(item)
            elif isinstance(item, pb.Cancel):
                choice = item.choice if item.HasField("choice") else None
                self.engine.cancel(item.request_id, item.attempt, choice)
            else:
                self.engine.forget_stream(item)
        self.engine.expire(time.time())

    def _publish(self, outputs: tuple[Output, ...], step: int) -> None:
        """One message per router and step, built on the server's thread while the next step runs."""
        engine = self.engine
        if outputs:
            frame = pb.Step(
                epoch=self.epoch,
                step=step,
                running=len(engine.running),
                waiting=len(engine.waiting),
                kv_used=engine.kv_used,
                backlog=engine.backlog,
            )
            self._post.hand_over(partial(step_messages, frame, outputs))
        for output in outputs:
            if output.finish is Finish.DEAD_END:
                self._refuse(output.sequence, pb.REFUSAL_REASON_INVALID, output.why)
        events = kv_events_from(engine.kv)
        if events is not None:
            self._post.broadcast(pb.ConnectResponse(kv_events=events))

    def _end(self, why: str, reason: pb.RefusalReason.ValueType) -> None:
        self._refuse_all(why, reason)
        self._rest(State.ENDED, why)

    def _refuse_all(self, why: str, reason: pb.RefusalReason.ValueType) -> None:
        """Close the gate and refuse everything that was taken, behind what is known of it already."""
        with self._gate:
            self._open, self.why = False, why
        self._publish(self.engine.tell(), self.engine.next_step)
        left = self.engine.drop_all()
        while not self._inbox.empty():
            item = self._inbox.get()
            if isinstance(item, Sequence):
                left.append(item)
        for sequence in left:
            self._refuse(sequence, reason, why)

    def _refuse(self, sequence: Sequence, reason: pb.RefusalReason.ValueType, why: str) -> None:
        refused = pb.Refused(
            request_id=sequence.key.request_id,
            attempt=sequence.attempt,
            choice=sequence.key.choice,
            reason=reason,
            message=why,
        )
        self._post.send(sequence.stream, pb.ConnectResponse(refused=refused))

    def _check_attempt(self, sequence: Sequence) -> None:
        """Remember the newest attempt of each sequence; refuse one that is not newer."""
        name = (sequence.key.request_id, sequence.key.choice)
        known = self._attempts.get(name, -1)
        if sequence.attempt <= known:
            raise StaleAttemptError(f"attempt {sequence.attempt} of {name[0]!r}: attempt {known} was seen already")
        self._attempts[name] = sequence.attempt
        self._attempts.move_to_end(name)
        while len(self._attempts) > ATTEMPTS_REMEMBERED:
            self._attempts.popitem(last=False)
