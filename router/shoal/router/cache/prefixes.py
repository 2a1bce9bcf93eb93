"""Which workers have the KV of which prompt's beginning, as all routers know it: a hint for the choice of a worker.

    shoal:prefix:{name}    sorted set: workers by the millisecond when they computed the prompt up to there

A beginning is named by a hash over its tokens in pieces of `PIECE`, chained and salted per tenant, so that no name
tells what was said, and tenants do not meet. Names expire; a worker that left, or evicted the blocks, costs a wrong
hint.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from redis.exceptions import NoScriptError

from shoal.router.store.away import answering
from shoal.router.store.keys import tagged
from shoal.router.store.script import Client, Script

PIECE = 256
"""Tokens."""

_MOST_PIECES = 64  # of one prompt; beyond 16,384 tokens the beginning decides
_MOST_WORKERS = 8

# KEYS: prefix. ARGV: worker, time to live ms, most workers.
_ADD = Script("""
local time = redis.call('TIME')
redis.call('ZADD', KEYS[1], time[1] * 1000 + math.floor(time[2] / 1000), ARGV[1])
redis.call('ZREMRANGEBYRANK', KEYS[1], 0, -tonumber(ARGV[3]) - 1)
redis.call('PEXPIRE', KEYS[1], ARGV[2])
""")


def names_of(ids: Iterable[int], salt: bytes) -> list[str]:
    """Names of the prompt's beginnings, of one piece, of two, and so on; what does not fill a piece has none.

    >>> one, two = names_of(range(256), b"a"), names_of(range(600), b"a")
    >>> len(one), len(two), one[0] == two[0], one == names_of(range(256), b"b")
    (1, 2, True, False)
    """
    listed = list(ids)
    names, before = [], salt
    for place in range(0, min(len(listed) // PIECE, _MOST_PIECES) * PIECE, PIECE):
        piece = struct.pack(f"<{PIECE}I", *listed[place : place + PIECE])
        before = hashlib.blake2b(before + piece, digest_size=16).digest()
        names.append(before.hex())
    return names


class Prefixes:
    """The index. Every method raises SessionsAwayError when Redis does not answer: a hint is worth no waiting."""

    def __init__(self, client: Client, seconds: float = 600.0) -> None:
        """A beginning that nobody computes again is forgotten after `seconds`."""
        self._client, self._milliseconds = client, int(seconds * 1000)

    async def add(self, worker: str, names: Sequence[str]) -> None:
        """The worker has just computed a prompt with these beginnings."""
        async with answering("prefixes"):
            arguments = (worker, self._milliseconds, _MOST_WORKERS)
            pipeline: Any = self._client.pipeline(transaction=False)
            for name in names:
                _ADD.queue(pipeline, [tagged("prefix", name)], arguments)
            answers = await pipeline.execute(raise_on_error=False) if names else []
            for name, answer in zip(names, answers, strict=True):
                if isinstance(answer, NoScriptError):
                    await _ADD.run(self._client, [tagged("prefix", name)], arguments)
                elif isinstance(answer, Exception):
                    raise answer

    async def find(self, names: Sequence[str]) -> Mapping[str, int]:
        """Tokens of the longest of these beginnings that each worker has; nobody who has none."""
        if not names:
            return {}
        async with answering("prefixes"):
            pipeline: Any = self._client.pipeline(transaction=False)
            for name in names:
                pipeline.zrange(tagged("prefix", name), 0, -1)
            answers: list[list[bytes]] = await pipeline.execute()
        found: dict[str, int] = {}
        for count, workers in enumerate(answers, start=1):
            found |= {worker.decode(): count * PIECE for worker in workers}
        return found
