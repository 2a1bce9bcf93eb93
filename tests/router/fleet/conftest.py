"""A pool."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from shoal.router.fleet.pool import WorkerPool
from shoal.router.fleet.worker_link import LinkSettings


@pytest.fixture
async def pool() -> AsyncIterator[WorkerPool]:
    """A pool that waits briefly."""
    made = WorkerPool(LinkSettings("r", "hash", max_unread_tokens=1000, accept_seconds=0.5), wait_seconds=1.0)
    yield made
    await made.close()
