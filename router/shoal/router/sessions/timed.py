"""A session store whose every call is timed."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import Any, cast

from prometheus_client import Histogram

from shoal.router.sessions.store import SessionStore


def timed(store: SessionStore, seconds: Histogram) -> SessionStore:
    """The same store; each call is observed in `seconds`, labelled with its name and "ok" or "error"."""
    return cast(SessionStore, _Timed(store, seconds))


class _Timed:
    """Every coroutine method of the store under its own name."""

    def __init__(self, store: SessionStore, seconds: Histogram) -> None:
        self._store, self._seconds = store, seconds

    def __getattr__(self, name: str) -> Any:
        call: Callable[..., Awaitable[Any]] = getattr(self._store, name)

        async def measured(*arguments: Any, **named: Any) -> Any:
            began, outcome = time.monotonic(), "error"
            try:
                result = await call(*arguments, **named)
                outcome = "ok"
                return result
            finally:
                self._seconds.labels(name, outcome).observe(time.monotonic() - began)

        setattr(self, name, measured)
        return measured
