"""One call of one client: what every part that serves it needs to know."""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from shoal.router.access.caller import Caller
from shoal.router.limits.quota import Allowance, NoLimit
from shoal.router.tenant import cache_salt
from shoal.wire.deadlines import Deadline

_TRACEPARENT = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")


def traceparent_of(header: str | bytes | None) -> str:
    """A W3C traceparent as it was sent, empty when it is none.

    >>> traceparent_of("00-" + "a" * 32 + "-" + "b" * 16 + "-01")[:6], traceparent_of("anything")
    ('00-aaa', '')
    """
    return header if isinstance(header, str) and _TRACEPARENT.fullmatch(header) else ""


@dataclass(frozen=True, slots=True)
class Call:
    """Made when a request arrives, never changed."""

    caller: Caller
    deadline: Deadline
    request_id: str = ""
    """The caller's name for it; ours when the caller gave none."""
    work_id: str = field(default_factory=lambda: secrets.token_hex(16))
    """Our name for it, unique among everything that any router runs: callers may repeat theirs."""
    traceparent: str = ""
    allowance: Allowance = field(default_factory=NoLimit)
    """What it may use; the part that knows the prompt's tokens tells it."""
    redact: Callable[[str], str] | None = None
    """Applied to what is kept of the answer; the journal then keeps nothing of it. None: kept as it was said."""
    judge: Callable[[str], Awaitable[None]] | None = None
    """Asked about what was said before it is kept or a tool is called with it; raises for what may not be said."""
    origin: str = ""
    """The request as another API than ours brought it; kept with the request."""
    remembers: bool = False
    """Whether answers that cannot differ may come from the cache, as agreed with the tenant."""
    idempotency_key: str = ""
    """As an API without a field for it brought it."""
    digest: str = ""
    """Of what is asked, where the API that brought the key knows better than the request that it became."""
    clock: Callable[[], float] = time.monotonic
    arrived: float = field(default_factory=time.monotonic)
    """On `clock`."""

    def __post_init__(self) -> None:
        if not self.request_id:
            object.__setattr__(self, "request_id", self.work_id)

    @property
    def tenant(self) -> str:
        """Whose request it is."""
        return self.caller.tenant

    @property
    def cache_salt(self) -> bytes:
        """Separates tenants in prefix caches."""
        return cache_salt(self.tenant)
