"""The engine's thread without a server: whoever it took is answered, whatever happens."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from torch import Tensor

from shoal.proto.v1 import worker_pb2 as pb
from shoal.wire.tracing import Tracing
from shoal.workers.engine.engine import Engine
from shoal.workers.engine.sequence import Finish
from shoal.workers.experts.alarm import Alarm
from shoal.workers.loop import EngineLoop, Post, State
from shoal.workers.tracing import TracedPost
from tests.wire.posts import RecordedPost
from tests.workers.engines import make_engine, random_tokens, sequence


@contextmanager
def serving(engine: Engine, post: Post, canary_period: float = 0.0) -> Iterator[EngineLoop]:
    """A loop that serves its first epoch, until the end of the block."""
    loop = EngineLoop(engine, Alarm(), post, canary_period=canary_period)
    loop.start()
    until(lambda: loop._rests)
    loop.resume(1)
    try:
        yield loop
    finally:
        loop.stop(5)


def until(true: Callable[[], bool]) -> None:
    """Wait for it."""
    limit = time.monotonic() + 20
    while not true():
        assert time.monotonic() < limit, "it did not come true"
        time.sleep(0.01)


def test_nothing_is_kept_of_who_hung_up(tiny: Path) -> None:
    """A router goes in the middle of an answer: its sequence ends, and so does the trace of it."""
    engine, exporter = make_engine(tiny), InMemorySpanExporter()
    traced = TracedPost(RecordedPost(), Tracing.of("shoal-worker", {}, exporter), "w")
    made = sequence(random_tokens(20, 1000, 1), max_tokens=1900)
    made.stream = "gone"
    with serving(engine, traced) as loop:
        until(lambda: loop._open)
        loop.submit(made)
        traced.begin(pb.Submit(request_id="r"))
        until(lambda: made.num_generated > 2)
        loop.hang_up("gone")
        until(lambda: made.finish is not None)
        until(lambda: not traced._spans)
    assert Finish.CANCELLED is made.finish


def test_an_end_is_told_before_a_failure(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A step learns that one sequence has ended, and fails: that one is answered as it ended, the other is refused."""
    engine, letters = make_engine(tiny, sampler="device", overlap=True), RecordedPost()
    forward, calls = engine.model.forward, list[int]()

    def fails_once(*arguments: object) -> Tensor:
        calls.append(1)
        if len(calls) == 2:
            raise RuntimeError("no memory")
        return forward(*arguments)  # type: ignore[arg-type]  # what it was called with

    monkeypatch.setattr(engine.model, "forward", fails_once)
    for name, tokens in (("short", 1), ("long", 9)):
        engine.submit(sequence(random_tokens(20, 1000, 1), name=name, max_tokens=tokens))
    with serving(engine, letters, canary_period=1e-9) as loop:  # before every self-test what flies must land
        until(lambda: loop.state is State.ENDED)
    told = [(o.request_id, len(o.ids), o.finish) for m in letters.sent for o in m.step.outputs]
    refused = [m.refused.request_id for m in letters.sent if m.HasField("refused")]
    assert [("short", 1, pb.SEQUENCE_FINISH_LENGTH), ("long", 1, 0)] == sorted(told, key=lambda t: -t[2])
    assert ["long"] == refused
    assert "no memory" in loop.why


def test_a_backlog_is_what_newcomers_would_wait_for(tiny: Path) -> None:
    """Of every prompt what is not computed yet, but for the token that its next step would compute anyhow."""
    engine, backlogs = make_engine(tiny, batch_tokens=64), []
    for length in (100, 50):
        engine.submit(sequence(random_tokens(length, 1000, length), name=str(length), max_tokens=9))
    while engine.backlog:
        backlogs.append(engine.backlog)
        engine.step()
    assert engine.has_work, "they decode now"
    assert [99 + 49, 99 - 64 + 49] == backlogs[:2]
    assert sorted(backlogs, reverse=True) == backlogs
