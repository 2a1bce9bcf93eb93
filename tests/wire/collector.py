"""An OpenTelemetry collector that keeps what it is sent, on a real socket."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import grpc
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)

_METHOD = "opentelemetry.proto.collector.trace.v1.TraceService"


@dataclass(frozen=True, slots=True)
class Told:
    """One span."""

    service: str
    name: str
    trace: str
    span: str
    parent: str
    events: tuple[str, ...]


@dataclass
class Collector:
    """Every span that arrived."""

    address: str = ""
    spans: list[Told] = field(default_factory=list)

    def export(self, request: ExportTraceServiceRequest, _: Any) -> ExportTraceServiceResponse:
        """The one call."""
        for resource in request.resource_spans:
            names = [a.value.string_value for a in resource.resource.attributes if a.key == "service.name"]
            for scope in resource.scope_spans:
                self.spans += [
                    Told(names[0], span.name, span.trace_id.hex(), span.span_id.hex(), span.parent_span_id.hex(),
                         tuple(event.name for event in span.events))
                    for span in scope.spans
                ]  # fmt: skip
        return ExportTraceServiceResponse()

    def of(self, trace: str) -> dict[str, Told]:
        """A trace's spans by their service."""
        return {span.service: span for span in self.spans if span.trace == trace}


@contextlib.contextmanager
def collecting(port: int = 0) -> Iterator[Collector]:
    """A collector until the block ends."""
    collector, server = Collector(), grpc.server(ThreadPoolExecutor(2))
    handler = grpc.unary_unary_rpc_method_handler(
        collector.export,
        request_deserializer=ExportTraceServiceRequest.FromString,
        response_serializer=ExportTraceServiceResponse.SerializeToString,
    )
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(_METHOD, {"Export": handler}),))
    collector.address = f"127.0.0.1:{server.add_insecure_port(f'127.0.0.1:{port}')}"
    server.start()
    try:
        yield collector
    finally:
        server.stop(0).wait()
