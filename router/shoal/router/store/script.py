"""Scripts that run inside Redis, each all of it or nothing.

All keys of one run share a hash tag, so scripts work in a cluster. A server that restarted, or a replica that took
over, does not know them any more: `run` sends the text then, once.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

from redis.asyncio import Redis
from redis.asyncio.cluster import RedisCluster
from redis.exceptions import NoScriptError

Client = Redis | RedisCluster
"""One server (or the present primary of a sentinel's service), or a cluster of them."""

Argument = str | bytes | int | float


class Script:
    """A Lua script."""

    def __init__(self, text: str) -> None:
        self.text = text
        self._sha = hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()

    async def run(self, client: Client, keys: Sequence[str], arguments: Sequence[Argument]) -> Any:
        """Its answer. Raises redis.RedisError."""
        asked: Any = client
        try:
            return await asked.evalsha(self._sha, len(keys), *keys, *arguments)
        except NoScriptError:
            return await asked.eval(self.text, len(keys), *keys, *arguments)

    async def run_replicated(
        self, client: Client, keys: Sequence[str], arguments: Sequence[Argument], replicas: int, milliseconds: int
    ) -> tuple[Any, bool]:
        """Its answer, and whether so many replicas have what it wrote within the time. A run that writes nothing says
        nothing of earlier ones. Raises redis.RedisError."""
        asked: Any = client  # one server, or a sentinel's service: a cluster has no way for WAIT
        while True:
            pipeline = asked.pipeline(transaction=False)
            self.queue(pipeline, keys, arguments)
            pipeline.execute_command("WAIT", replicas, milliseconds)  # of this connection's writes
            answer, count = await pipeline.execute(raise_on_error=False)
            if isinstance(answer, NoScriptError):
                await asked.script_load(self.text)
                continue
            for outcome in (answer, count):
                if isinstance(outcome, Exception):
                    raise outcome
            return answer, count >= replicas

    def queue(self, pipeline: Any, keys: Sequence[str], arguments: Sequence[Argument]) -> None:
        """Put a run into a pipeline. Its answer may be a NoScriptError, after which `run` is due."""
        pipeline.execute_command("EVALSHA", self._sha, len(keys), *keys, *arguments)  # a cluster's has no `evalsha`
