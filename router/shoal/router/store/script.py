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

    def queue(self, pipeline: Any, keys: Sequence[str], arguments: Sequence[Argument]) -> None:
        """Put a run into a pipeline. Its answer may be a NoScriptError, after which `run` is due."""
        pipeline.execute_command("EVALSHA", self._sha, len(keys), *keys, *arguments)  # a cluster's has no `evalsha`
