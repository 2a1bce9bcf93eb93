"""Submits of one stream whose constraint is being compiled, on threads of their own: a slow schema stalls neither the
event loop nor an engine step."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from typing import Protocol

from shoal.proto.v1 import worker_pb2 as pb
from shoal.proto.v1.constraint_pb2 import Constraint
from shoal.workers.constraint.cursor import Cursor
from shoal.workers.errors import NotReadyError, OverloadedError
from shoal.workers.messages import generated_in, means

MOST = 256
"""Submits of one stream that may wait; more are refused as overloaded."""

Done = Callable[[Cursor | Exception], None]


class Compiler(Protocol):
    """What does the work. Called on a thread of the executor."""

    def begin_constraint(self, constraint: Constraint, generated: Sequence[int]) -> Cursor: ...


class Compiling:
    """Belongs to one event loop. `done` is called once for every submit begun, unless the stream ends first."""

    def __init__(self, compiler: Compiler, threads: Executor) -> None:
        self._compiler = compiler
        self._threads = threads
        self._running: dict[asyncio.Task[None], tuple[pb.Submit, Done]] = {}

    def begin(self, submit: pb.Submit, done: Done) -> None:
        """Compile the submit's constraint and replay its generated tokens; then call `done` on this loop."""
        if len(self._running) >= MOST:
            done(OverloadedError(f"{MOST} constraints wait to be compiled"))
            return
        task = asyncio.create_task(self._run(submit, done))
        self._running[task] = (submit, done)
        task.add_done_callback(lambda task: self._running.pop(task, None))

    def cancel(self, cancel: pb.Cancel) -> None:
        """The request is not wanted any more."""
        for task, (submit, done) in list(self._running.items()):
            if means(cancel, submit.request_id, submit.attempt, submit.choice):
                task.cancel()
                del self._running[task]
                done(NotReadyError("cancelled before it began"))

    def stop(self) -> None:
        """The stream ended: nobody is told anything."""
        for task in self._running:
            task.cancel()

    async def _run(self, submit: pb.Submit, done: Done) -> None:
        loop = asyncio.get_running_loop()
        try:
            cursor = await loop.run_in_executor(
                self._threads, self._compiler.begin_constraint, submit.constraint, generated_in(submit)
            )
        except Exception as error:  # told to the router, which waits for an answer
            done(error)
        else:
            done(cursor)
