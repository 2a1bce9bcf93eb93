"""A journal in a real Redis."""

from __future__ import annotations

import pytest
import redis.asyncio

from shoal.proto.v1.journal_pb2 import JournalTokens, RequestRecord
from shoal.router.journal.journal import Journal
from shoal.router.journal.lease import JournalLimits


@pytest.fixture
def journal(client: redis.asyncio.Redis) -> Journal:
    """The journal under test, with a short lease."""
    return Journal(client, JournalLimits(lease_seconds=0.15, keep_seconds=60.0, most_bytes=20_000))


def record(work_id: str = "w", **fields: object) -> RequestRecord:
    """A request as it was accepted."""
    return RequestRecord(**{"work_id": work_id, "tenant": "t", "request_id": work_id, "seed": 7, **fields})  # type: ignore[arg-type]  # by name


def tokens(offset: int, *ids: int, **fields: object) -> JournalTokens:
    """An entry."""
    return JournalTokens(offset=offset, ids=ids, **fields)  # type: ignore[arg-type]  # by name


async def ids_of(journal: Journal, work_id: str = "w", choice: int = 0, round_: int = 0) -> list[int]:
    """The tokens of a lane, which must join."""
    view = await journal.read("t", work_id)
    assert view is not None, "there is no such journal"
    found: list[int] = []
    for entry in view.lane(choice, round_):
        assert entry.offset == len(found), f"{entry.offset} after {len(found)} tokens"
        found += entry.ids
    return found
