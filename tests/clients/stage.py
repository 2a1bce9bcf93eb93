"""A router on real sockets in a thread of its own, so that blocking clients can talk to it.

Behind it a scripted worker says what a test tells it to: words that a random model would never find.
"""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections.abc import AsyncIterator, Coroutine
from pathlib import Path
from typing import Any, TypeVar

from shoal.proto.v1 import worker_pb2 as pb
from shoal.router.config import RouterConfig
from shoal.router.fleet.scripted_worker import Action, Script, ScriptedWorker, saying
from shoal.router.server import Listening, Router
from shoal.router.tokenizer import Tokenizer
from shoal.router.tools.runner import ToolRunner
from tests.router.byte_tokenizer import ids_of
from tests.router.talking import until

_Result = TypeVar("_Result")

THOUGHT = "<|channel|>analysis<|message|>{}<|end|><|start|>assistant"
ANSWER = "<|channel|>final<|message|>{}<|return|>"
CALL = " to=functions.{}<|channel|>commentary <|constrain|>json<|message|>{}<|call|>"


def answer(text: str, thought: str = "") -> str:
    """A turn that answers, as the model writes it."""
    return (THOUGHT.format(thought) if thought else "") + ANSWER.format(text)


def call(name: str, arguments: str, thought: str = "") -> str:
    """A turn that calls a function."""
    return (THOUGHT.format(thought) if thought else "") + CALL.format(name, arguments)


class Stage:
    """A router, its worker, and the text that the worker will say.

    With `workers=(address,)` among the settings those are used instead, and nothing can be said for them.
    """

    def __init__(
        self, model_dir: Path, redis_url: str = "", tools: tuple[ToolRunner, ...] = (), **settings: Any
    ) -> None:
        self.tokenizer = Tokenizer.load(model_dir)
        self.model = model_dir.name
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="stage", daemon=True)
        self._thread.start()
        self.worker = ScriptedWorker(saying([]), max_context=200_000)
        self._settings = {
            "model_dir": str(model_dir),
            "port": 0,
            "http_port": 0,
            "metrics_port": -1,
            "redis_url": redis_url,
            "drain_seconds": 0.2,
            **settings,
        }
        self._tools = tools
        self.listening: Listening = self.run(self._start())

    @property
    def url(self) -> str:
        """Where OpenAI's clients are pointed."""
        return f"http://{self.listening.http}/v1"

    @property
    def root(self) -> str:
        """Where everything else is."""
        return f"http://{self.listening.http}"

    def run(self, work: Coroutine[Any, Any, _Result]) -> _Result:
        """Run something on the router's loop, from another thread."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(30)

    def says(self, *turns: str, pause: float = 0.0) -> None:
        """The worker says these, one per sequence, the last one for ever. `<|name|>` are control tokens."""
        scripts = [saying(ids_of(self.tokenizer, turn), pause=pause) for turn in turns]
        numbers = itertools.count()

        async def script(submit: pb.Submit) -> AsyncIterator[Action]:
            async for action in scripts[min(next(numbers), len(scripts) - 1)](submit):
                yield action

        self.does(script)

    def does(self, script: Script) -> None:
        """The worker does this for each sequence; what it heard before is forgotten."""
        self.worker.script = script
        self.worker.submits.clear()
        self.worker.cancels.clear()

    def prompt(self, index: int = -1) -> str:
        """What the worker was given to read, control tokens by their names."""
        ids = [token for part in self.worker.submits[index].prompt for token in part.ids]
        return self.tokenizer.decode(ids)

    async def _start(self) -> Listening:
        await self.worker.start()
        config = RouterConfig(**{"workers": (self.worker.address,), **self._settings})
        self._router = Router(config, self.tokenizer, self._tools)
        listening = await self._router.start()
        await until(lambda: bool(self._router.pool.eligible()))
        return listening

    def close(self) -> None:
        """Stop everything."""

        async def stop() -> None:
            await self._router.stop(0)
            await self.worker.stop()

        self.run(stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(5)
        self._loop.close()
