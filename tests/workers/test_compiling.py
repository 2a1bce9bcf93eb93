"""Constraints are compiled beside the event loop: whatever one of them costs, nobody else waits."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest

from shoal.proto.v1 import worker_pb2 as pb
from shoal.proto.v1.constraint_pb2 import Constraint
from shoal.workers.compiling import MOST, Compiling
from shoal.workers.constraint.compiler import ConstraintCompiler
from shoal.workers.constraint.cursor import Cursor
from shoal.workers.errors import NotReadyError, OverloadedError, RequestError
from tests.workers.constraint.small import END, TOKEN_BYTES, anything, choice, constraint, path, regex


class Gated:
    """A compiler that waits at a gate, for constraints of one state."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.replayed: list[list[int]] = []
        self._compiler = ConstraintCompiler(TOKEN_BYTES)

    def begin_constraint(self, message: Constraint, generated: Sequence[int]) -> Cursor:
        if len(message.states) == 1:
            self.gate.wait(10)
        self.replayed.append(list(generated))
        return self._compiler.begin(message, generated)


SLOW = constraint(anything(path(END, to=0)))
QUICK = constraint(regex("ab", path(END, to=1)), choice())


def submit(name: str, message: Constraint, generated: Sequence[int] = ()) -> pb.Submit:
    """Under a constraint, after generated tokens."""
    parts = [pb.PromptPart(ids=[1, 2]), pb.PromptPart(ids=generated)]
    return pb.Submit(request_id=name, constraint=message, prompt=parts, start_offset=len(generated))


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    """Two, as a worker has."""
    with ThreadPoolExecutor(2) as pool:
        yield pool


async def test_a_slow_constraint_holds_up_nobody(threads: ThreadPoolExecutor) -> None:
    """The quick one is ready first, with its generated tokens replayed; the slow one follows."""
    compiler, ready = Gated(), asyncio.Queue[tuple[str, Cursor | Exception]]()
    compiling = Compiling(compiler, threads)
    for name, message in (("slow", SLOW), ("quick", QUICK)):
        tokens = [97] if name == "quick" else []
        compiling.begin(submit(name, message, tokens), lambda cursor, name=name: ready.put_nowait((name, cursor)))  # type: ignore[misc]  # mypy cannot type a default

    name, cursor = await ready.get()
    assert "quick" == name
    assert isinstance(cursor, Cursor)
    assert [98] == cursor.allowed().tolist()
    compiler.gate.set()
    assert "slow" == (await ready.get())[0]


async def test_what_cannot_be_compiled_is_answered(threads: ThreadPoolExecutor) -> None:
    """The error of a constraint is its answer."""
    answers = asyncio.Queue[Cursor | Exception]()
    Compiling(Gated(), threads).begin(submit("bad", constraint(regex("("), choice())), answers.put_nowait)

    assert isinstance(await answers.get(), RequestError)


async def test_a_cancelled_submit_is_answered_once(threads: ThreadPoolExecutor) -> None:
    """Cancelled while it compiles: refused at once, and never begun; another attempt or choice is left alone."""
    compiler, answers = Gated(), asyncio.Queue[Cursor | Exception]()
    compiling = Compiling(compiler, threads)
    compiling.begin(submit("r", SLOW), answers.put_nowait)
    compiling.cancel(pb.Cancel(request_id="r", attempt=7))
    compiling.cancel(pb.Cancel(request_id="r", choice=1))
    assert answers.empty()

    compiling.cancel(pb.Cancel(request_id="r"))
    assert isinstance(answers.get_nowait(), NotReadyError)
    compiler.gate.set()
    await asyncio.sleep(0.05)
    assert answers.empty()


async def test_more_than_may_wait_are_refused(threads: ThreadPoolExecutor) -> None:
    """The queue is bounded, and a stream that ends is told nothing."""
    compiler, answers = Gated(), asyncio.Queue[Cursor | Exception]()
    compiling = Compiling(compiler, threads)
    for i in range(MOST + 1):
        compiling.begin(submit(f"r{i}", SLOW), answers.put_nowait)

    assert isinstance(answers.get_nowait(), OverloadedError)
    compiling.stop()
    compiler.gate.set()
    await asyncio.sleep(0.05)
    assert answers.empty()
