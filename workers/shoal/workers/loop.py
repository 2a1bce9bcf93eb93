"""The engine's own thread: takes what arrived, steps, hands the news out, sleeps when the whole group has no work."""

from __future__ import annotations

import queue
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from functools import partial
from typing import Protocol

import structlog

from shoal.proto.v1 import worker_pb2 as pb
from shoal.workers.engine.engine import Engine, Output
from shoal.workers.engine.sequence import Finish, Sequence
from shoal.workers.errors import ExchangeError, NotReadyError, StaleAttemptError
from shoal.workers.experts.alarm import Alarm
from shoal.workers.messages import kv_events_from, step_messages

log = structlog.get_logger()


ATTEMPTS_REMEMBERED = 4096


class Post(Protocol):
    """How messages leave the worker. Called from the engine's thread; never waits."""

    def send(self, stream: str, message: pb.ConnectResponse) -> None: ...

    def hand_over(self, build: Callable[[], Mapping[str, pb.ConnectResponse]]) -> None:
        """Build messages on the server's own thread, then send each to its stream."""
        ...

    def broadcast(self, message: pb.ConnectResponse) -> None:
        """To every stream that asked for KV events."""
        ...


class EngineLoop:
    """Runs one engine in one epoch until the group stops or its exchange breaks.

    Every sequence that `submit` took is answered: by tokens and a finish, or by one refusal.
    """

    def __init__(self, engine: Engine, epoch: int, alarm: Alarm, post: Post) -> None:
        self.engine = engine
        self._epoch = epoch
        self._alarm = alarm
        self._post = post
        self._inbox: queue.SimpleQueue[Sequence | pb.Cancel | str] = queue.SimpleQueue()
        self._gate = threading.Lock()  # a sequence is either refused or in the inbox before the loop's last look
        self._open = True
        self._stopping = False
        self._attempts: OrderedDict[tuple[str, int], int] = OrderedDict()
        self.failure = ""
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    @property
    def ready(self) -> bool:
        return self._open

    @property
    def busy(self) -> bool:
        """Whether anything is queued or running."""
        return not self._inbox.empty() or self.engine.has_work

    def start(self) -> None:
        self._thread.start()

    def submit(self, sequence: Sequence) -> None:
        """Queue a sequence. Raises NotReadyError, StaleAttemptError, OverloadedError, RequestError."""
        with self._gate:
            if not self._open:
                raise NotReadyError(self.failure or "this worker is shutting down")
            self.engine.check(sequence, backlog=self._inbox.qsize())
            self._check_attempt(sequence)
            self._inbox.put(sequence)
        self._alarm.ring()

    def cancel(self, cancel: pb.Cancel) -> None:
        """End a request before the next step."""
        self._inbox.put(cancel)
        self._alarm.ring()

    def hang_up(self, stream: str) -> None:
        """Nobody listens to `stream` any more: its sequences end without a word."""
        self._inbox.put(stream)
        self._alarm.ring()

    def refuse_new(self) -> None:
        """Begin to drain."""
        with self._gate:
            self._open = False

    def stop(self, timeout: float) -> None:
        """Leave the group after the current step; every rank's loop ends with it. Safe to repeat."""
        self.refuse_new()
        self._stopping = True
        self._alarm.ring()
        self._thread.join(timeout)

    def _run(self) -> None:
        engine = self.engine
        try:
            while True:
                ended = self._drain()
                result = engine.step(stopping=self._stopping)
                self._publish((*ended, *result.outputs), result.step)
                if result.stopping:
                    self._answer_all("the group is stopping", pb.REFUSAL_REASON_UNAVAILABLE)
                    return
                if result.idle and not engine.has_work:
                    engine.check_integrity()
                    self._alarm.sleep(engine.next_step)
        except ExchangeError as error:
            log.error("the expert exchange broke", error=str(error))
            self._answer_all(f"the expert exchange broke: {error}", pb.REFUSAL_REASON_UNAVAILABLE)
        except Exception as error:  # whatever it was, every accepted request must still be answered
            log.exception("the engine failed")
            self._answer_all(f"the engine failed: {error}", pb.REFUSAL_REASON_INTERNAL)
        finally:
            engine.exchange.close()

    def _drain(self) -> list[Output]:
        """Take everything that arrived since the last step."""
        ended: list[Output] = []
        while not self._inbox.empty():
            item = self._inbox.get()
            if isinstance(item, Sequence):
                self.engine.submit(item)
            elif isinstance(item, pb.Cancel):
                ended += self.engine.cancel(item.request_id, item.attempt)
            else:
                self.engine.forget_stream(item)
        return ended + self.engine.expire(time.time())

    def _publish(self, outputs: tuple[Output, ...], step: int) -> None:
        """One message per router and step, built on the server's thread while the next step runs."""
        engine = self.engine
        if outputs:
            frame = pb.Step(
                epoch=self._epoch,
                step=step,
                running=len(engine.running),
                waiting=len(engine.waiting),
                kv_used=1.0 - engine.kv.full.num_free / engine.kv.full.num_blocks,
            )
            self._post.hand_over(partial(step_messages, frame, outputs))
        for output in outputs:
            if output.finish is Finish.DEAD_END:
                self._refuse(output.sequence, pb.REFUSAL_REASON_INVALID, output.why)
        events = kv_events_from(engine.kv)
        if events is not None:
            self._post.broadcast(pb.ConnectResponse(kv_events=events))

    def _answer_all(self, why: str, reason: pb.RefusalReason.ValueType) -> None:
        """Close the gate and refuse everything that was taken."""
        with self._gate:
            self._open, self.failure = False, why
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
