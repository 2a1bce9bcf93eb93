"""Traces over OpenTelemetry, for whoever asks for them; without that every call here does nothing and costs nothing.

They are asked for as everywhere: OTEL_EXPORTER_OTLP_ENDPOINT names a collector (its other variables hold too), and the
extra `shoal[tracing]` is installed. Between processes a trace is carried by its W3C traceparent alone. Attributes
hold names and counts, never what was said.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from typing import Any

import structlog

log = structlog.get_logger(__name__)

Attribute = str | int | float | bool


class Span:
    """One piece of work. Ends with `end`, or with the block of `Tracing.span`."""

    def __init__(self, span: Any = None) -> None:
        """`span` is OpenTelemetry's; None: nobody traces."""
        self._span = span

    @property
    def traceparent(self) -> str:
        """For whoever works on behalf of this one; empty without a trace."""
        if self._span is None:
            return ""
        context = self._span.get_span_context()
        return f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"

    def set(self, **attributes: Attribute) -> None:
        """Say more of it. Two underscores in a name become a dot."""
        if self._span is not None:
            self._span.set_attributes(_dotted(attributes))

    def event(self, name: str, **attributes: Attribute) -> None:
        """Something happened now."""
        if self._span is not None:
            self._span.add_event(name, _dotted(attributes))

    def end(self, error: str = "") -> None:
        """It is over, with `error` not well."""
        if self._span is None:
            return
        if error:
            from opentelemetry.trace import Status, StatusCode

            self._span.set_status(Status(StatusCode.ERROR, error))
        self._span.end()


class Tracing:
    """Makes spans for one process."""

    def __init__(self, tracer: Any = None, provider: Any = None) -> None:
        """OpenTelemetry's own; None: nobody traces."""
        self._tracer, self._provider = tracer, provider

    @classmethod
    def of(cls, service: str, environment: Mapping[str, str] | None = None, exporter: Any = None) -> Tracing:
        """What the environment asks for, for the process `service`; with `exporter` spans go there."""
        environment = os.environ if environment is None else environment
        asked = environment.get("OTEL_EXPORTER_OTLP_ENDPOINT") or environment.get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
        if exporter is None and (not asked or environment.get("OTEL_SDK_DISABLED", "").lower() == "true"):
            return cls()
        try:
            from opentelemetry.sdk.resources import Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor, SimpleSpanProcessor
        except ImportError:
            log.warning("traces are asked for, but the extra shoal[tracing] is not installed: there are none")
            return cls()
        provider = TracerProvider(resource=Resource.create({"service.name": service}))
        if exporter is None:
            from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter

            provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        else:
            provider.add_span_processor(SimpleSpanProcessor(exporter))
        return cls(provider.get_tracer("shoal"), provider)

    @property
    def on(self) -> bool:
        """Whether anybody traces."""
        return self._tracer is not None

    def begin(self, name: str, traceparent: str = "", **attributes: Attribute) -> Span:
        """A span that its owner ends, below `traceparent` if that is one."""
        if self._tracer is None:
            return Span()
        from opentelemetry.trace import SpanKind

        return Span(
            self._tracer.start_span(
                name, context=_context(traceparent), kind=SpanKind.SERVER, attributes=_dotted(attributes)
            )
        )

    @contextlib.contextmanager
    def span(self, name: str, traceparent: str = "", **attributes: Attribute) -> Iterator[Span]:
        """A span that lasts as long as the block; an exception that leaves it is told by its type alone."""
        span = self.begin(name, traceparent, **attributes)
        error = ""
        try:
            yield span
        except GeneratorExit:
            error = "the caller went away"
            raise
        except BaseException as raised:
            error = type(raised).__name__
            raise
        finally:
            span.end(error)

    def close(self) -> None:
        """Send what is left."""
        if self._provider is not None:
            self._provider.shutdown()


def _dotted(attributes: Mapping[str, Attribute]) -> dict[str, Attribute]:
    return {name.replace("__", "."): value for name, value in attributes.items()}


def _context(traceparent: str) -> Any:
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    return TraceContextTextMapPropagator().extract({"traceparent": traceparent} if traceparent else {})
