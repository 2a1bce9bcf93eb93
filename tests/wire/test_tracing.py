"""Traces, with OpenTelemetry's own exporter into memory."""

from __future__ import annotations

import pytest
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from shoal.proto.v1 import worker_pb2 as pb
from shoal.wire.tracing import Tracing
from shoal.workers.tracing import TracedPost
from tests.wire.posts import RecordedPost

PARENT = f"00-{'a' * 32}-{'b' * 16}-01"


@pytest.fixture
def exporter() -> InMemorySpanExporter:
    """What was traced."""
    return InMemorySpanExporter()


def test_nothing_is_traced_unless_asked_for() -> None:
    """And whoever is asked to carry a trace on has none."""
    tracing = Tracing.of("x", {})
    with tracing.span("work", PARENT, some__count=1) as span:
        span.event("step")
        assert "" == span.traceparent
    assert not tracing.on


def test_a_span_goes_on_where_the_caller_s_ended(exporter: InMemorySpanExporter) -> None:
    """The same trace, the caller's span as its parent, and a traceparent for those below."""
    tracing = Tracing.of("shoal-router", {}, exporter)
    with tracing.span("chat", PARENT, gen_ai__operation__name="chat") as span:
        assert span.traceparent.startswith(f"00-{'a' * 32}-")
    [told] = exporter.get_finished_spans()
    assert told.parent is not None
    assert ("a" * 32, "b" * 16) == (f"{told.context.trace_id:032x}", f"{told.parent.span_id:016x}")
    assert told.attributes is not None
    assert "chat" == told.attributes["gen_ai.operation.name"]


def test_what_was_raised_is_told_by_its_type_alone(exporter: InMemorySpanExporter) -> None:
    """Messages may hold what somebody said."""
    tracing = Tracing.of("x", {}, exporter)
    with pytest.raises(ValueError, match="secret"), tracing.span("chat"):
        raise ValueError("a secret")
    [told] = exporter.get_finished_spans()
    assert "ValueError" == told.status.description
    assert "secret" not in told.to_json()


def test_a_sequence_on_a_worker_is_a_span_with_its_steps(exporter: InMemorySpanExporter) -> None:
    """From acceptance to its finish, below the router's; messages go on as they are."""
    post = RecordedPost()
    traced = TracedPost(post, Tracing.of("shoal-worker", {}, exporter), "g0-1")
    traced.begin(pb.Submit(request_id="r", attempt=2, traceparent=PARENT, prompt=[pb.PromptPart(ids=[1, 2, 3])]))
    for step, finish in ((5, pb.SEQUENCE_FINISH_UNSPECIFIED), (6, pb.SEQUENCE_FINISH_LENGTH)):
        output = pb.SequenceOutput(request_id="r", attempt=2, offset=step - 5, ids=[9], finish=finish)
        message = pb.ConnectResponse(step=pb.Step(step=step, epoch=1, outputs=[output]))
        traced.hand_over(lambda message=message: {"s": message})  # type: ignore[misc]  # bound to this round's
    [told] = exporter.get_finished_spans()
    assert told.attributes is not None
    assert ("g0-1", 3, 2) == tuple(
        told.attributes[key] for key in ("shoal.worker", "gen_ai.usage.input_tokens", "gen_ai.usage.output_tokens")
    )
    assert [5, 6] == [event.attributes["shoal.step"] for event in told.events if event.attributes]
    assert 2 == len(post.sent)


def test_a_sequence_that_was_refused_ends_its_span(exporter: InMemorySpanExporter) -> None:
    """Nothing stays open."""
    traced = TracedPost(RecordedPost(), Tracing.of("shoal-worker", {}, exporter), "g0-1")
    traced.begin(pb.Submit(request_id="r"))
    traced.send("s", pb.ConnectResponse(refused=pb.Refused(request_id="r")))
    traced.begin(pb.Submit(request_id="q"))
    traced.close()
    assert ["refused", "the worker left"] == [span.status.description for span in exporter.get_finished_spans()]
