"""The engine's thread without a server: whoever it took is answered, whatever happens."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from torch import Tensor

from shoal.proto.v1 import worker_pb2 as pb
from shoal.workers.experts.alarm import Alarm
from shoal.workers.loop import EngineLoop, State
from tests.workers.engines import make_engine, random_tokens, sequence


class Letters:
    """Keeps what leaves the worker, and rings when it has ended."""

    def __init__(self) -> None:
        self.sent: list[pb.ConnectResponse] = []
        self.news = threading.Event()

    def send(self, stream: str, message: pb.ConnectResponse) -> None:
        self.sent.append(message)

    def hand_over(self, build: Callable[[], Mapping[str, pb.ConnectResponse]]) -> None:
        self.sent += build().values()

    def broadcast(self, message: pb.ConnectResponse) -> None: ...

    def announce(self) -> None:
        self.news.set()


def test_an_end_is_told_before_a_failure(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A step learns that one sequence has ended, and fails: that one is answered as it ended, the other is refused."""
    engine, letters = make_engine(tiny, sampler="device", overlap=True), Letters()
    loop = EngineLoop(engine, Alarm(), letters, canary_period=1e-9)  # before every self-test what flies must land
    forward, calls = engine.model.forward, list[int]()

    def fails_once(*arguments: object) -> Tensor:
        calls.append(1)
        if len(calls) == 2:
            raise RuntimeError("no memory")
        return forward(*arguments)  # type: ignore[arg-type]  # what it was called with

    monkeypatch.setattr(engine.model, "forward", fails_once)
    for name, tokens in (("short", 1), ("long", 9)):
        engine.submit(sequence(random_tokens(20, 1000, 1), name=name, max_tokens=tokens))
    loop.start()
    assert letters.news.wait(20)
    loop.resume(1)
    limit = time.monotonic() + 20
    while loop.state is not State.ENDED and time.monotonic() < limit:
        time.sleep(0.01)
    loop.stop(5)
    told = [(o.request_id, len(o.ids), o.finish) for m in letters.sent for o in m.step.outputs]
    refused = [m.refused.request_id for m in letters.sent if m.HasField("refused")]
    assert [("short", 1, pb.SEQUENCE_FINISH_LENGTH), ("long", 1, 0)] == sorted(told, key=lambda t: -t[2])
    assert ["long"] == refused
    assert "no memory" in loop.why
