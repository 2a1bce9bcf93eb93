"""How one generation is watched from its arrival to its end: counted, timed, traced, whichever API it came through."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import structlog

from shoal.proto.v1 import inference_pb2 as api
from shoal.router.call import Call
from shoal.router.metrics import Metrics
from shoal.router.tally import CURRENT, Tally
from shoal.router.waiting_line import WaitingLine
from shoal.wire.tracing import Span, Tracing


@dataclass(frozen=True, slots=True)
class Watched:
    """One request under watch."""

    call: Call
    """With the traceparent that those below carry on."""
    tally: Tally
    _span: Span
    _metrics: Metrics
    _leave_line: Callable[[], None]

    def admitted(self, waited: float) -> None:
        """It got room after `waited` seconds."""
        self._leave_line()
        self._metrics.queue_time.observe(waited)
        self._span.event("admitted", shoal__waited_seconds=waited)

    def saw(self, event: api.ChatResponse | api.GenerateResponse) -> None:
        """An event goes out: each choice's last one says what only the reader of its tokens knows."""
        if event.WhichOneof("event") == "done":
            usage = event.done.usage
            self.tally.reasoning += usage.reasoning_tokens
            self.tally.cached = max(self.tally.cached, usage.cached_tokens)


@dataclass(frozen=True, slots=True)
class Watch:
    """Watches the requests of one router. Belongs to one event loop."""

    metrics: Metrics
    line: WaitingLine
    """Who waits for room."""
    first_token: WaitingLine
    """Who waits for a first token."""
    tracing: Tracing

    @contextlib.contextmanager
    def request(self, operation: str, call: Call) -> Iterator[Watched]:
        """Until the block ends. `operation` is OpenTelemetry's word for it: "chat" or "text_completion"."""
        tally = Tally()
        CURRENT.set(tally)  # for this request's own task and those it starts
        attributes = {"gen_ai__operation__name": operation, "shoal__request": call.work_id}
        span = self.tracing.begin(operation, call.traceparent, **attributes)
        call = replace(call, traceparent=span.traceparent or call.traceparent)
        if call.traceparent:
            structlog.contextvars.bind_contextvars(trace=call.traceparent[3:35])
        error = "cancelled"
        try:
            with self.line.joined() as leave_line, self.first_token.joined() as tally.on_first:
                yield Watched(call, tally, span, self.metrics, leave_line)
            error = ""
        except Exception as raised:
            error = type(raised).__name__
            raise
        finally:
            self.metrics.settle(tally, call.tenant)
            span.set(gen_ai__usage__input_tokens=tally.prompt, gen_ai__usage__output_tokens=tally.generated)
            span.end(error)
