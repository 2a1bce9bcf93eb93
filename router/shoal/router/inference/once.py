"""A request with an idempotency key happens once, however often it is sent.

The first to use a key is the request. Sent again, the answer is what the first one says: replayed when it ended, gone
on with when it runs or broke off (its own stream then ends as taken over). What was refused before a worker took it
came to nothing, and the key is free again.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from shoal.proto.v1 import inference_pb2 as api
from shoal.router.call import Call
from shoal.router.errors import FieldError, RequestHeldError, SessionsAwayError
from shoal.router.inference.resolve import checked_name
from shoal.router.inference.resume import Resumer
from shoal.router.journal.claims import Claims

_FIELD = "idempotency_key"
_SOON_MS = 200

Known = Callable[[str], Awaitable[bool]]

_Event = TypeVar("_Event", api.ChatResponse, api.GenerateResponse)


def digest_of(request: api.ChatRequest | api.GenerateRequest) -> str:
    """What is asked, apart from its names.

    >>> first, second = api.GenerateRequest(text="a", request_id="1"), api.GenerateRequest(text="a", request_id="2")
    >>> digest_of(first) == digest_of(second) != digest_of(api.GenerateRequest(text="b"))
    True
    """
    bare = type(request)()
    bare.CopyFrom(request)  # type: ignore[arg-type]  # of the same type
    for name in (_FIELD, "request_id"):
        bare.ClearField(name)  # type: ignore[arg-type]  # both have it
    return hashlib.sha256(bare.DESCRIPTOR.name.encode() + bare.SerializeToString(deterministic=True)).hexdigest()


@dataclass(frozen=True, slots=True)
class Once:
    """Serves what may be sent again."""

    claims: Claims | None
    """None: this router keeps no requests, so it refuses keys."""
    resumer: Resumer
    keep_seconds: float
    """How long a request is kept after its end."""
    lease_seconds: float
    """A claim of a request that nobody accepted is void after so long: its router is gone."""

    async def events(
        self,
        request: api.ChatRequest | api.GenerateRequest,
        call: Call,
        fresh: Callable[[Call], AsyncGenerator[_Event, None]],
    ) -> AsyncGenerator[_Event, None]:
        """The events of `fresh`, or those of the request that has the key. Raises FieldError for a key that stands for
        another request, RequestHeldError while the first one is not accepted yet, SessionsAwayError without Redis."""
        key = checked_name(_FIELD, request.idempotency_key)
        first = await self.owner(key, call.digest or digest_of(request), call) if key else call.work_id
        if first != call.work_id:
            if call.digest:
                raise RequestHeldError("the request was sent again and is served there", retry_after_ms=_SOON_MS)
            earlier: Any = self.resumer.events(api.ResumeRequest(request_id=first), call)  # of the type of `request`
            events: AsyncGenerator[_Event, None] = earlier
        else:
            events = self._first(key, call, fresh) if key else fresh(call)
        async with contextlib.aclosing(events):
            async for event in events:
                yield event

    async def owner(self, key: str, digest: str, call: Call, known: Known | None = None) -> str:
        """Our name for the request that has the key; this one's own when it is the first. `known`: whether anything is
        left of a request, by its name; else whether the journal has it. Raises as `events`."""
        claims, seconds = self._required(), call.deadline.remaining + self.keep_seconds
        claimed = await claims.claim(call.tenant, key, call.work_id, digest, seconds)
        if claimed.digest != digest:
            raise FieldError(_FIELD, "was used for another request")
        if claimed.work_id == call.work_id or (known is not None and await known(claimed.work_id)):
            return claimed.work_id
        if await self.resumer.keeper.knows(call.tenant, claimed.work_id):
            return claimed.work_id
        if claimed.age_seconds < self.lease_seconds:
            wait = int(1000 * min(1.0, self.lease_seconds - claimed.age_seconds)) + 1
            raise RequestHeldError("the request with this idempotency key is just beginning", retry_after_ms=wait)
        again = await claims.claim(call.tenant, key, call.work_id, digest, seconds, instead_of=claimed.work_id)
        return again.work_id

    async def _first(
        self, key: str, call: Call, fresh: Callable[[Call], AsyncGenerator[_Event, None]]
    ) -> AsyncGenerator[_Event, None]:
        begun = False
        try:
            async with contextlib.aclosing(fresh(call)) as events:
                async for event in events:
                    if event.HasField("started") and not event.started.resumable:
                        raise SessionsAwayError("the request could not be kept, and without that it might happen twice")
                    begun = True
                    yield event
        except Exception:
            if not begun:
                await self.release(key, call)
            raise

    async def release(self, key: str, call: Call) -> None:
        """The request came to nothing: its key is free again."""
        with contextlib.suppress(SessionsAwayError):  # then it ends by itself
            await self._required().drop(call.tenant, key, call.work_id)

    def _required(self) -> Claims:
        if self.claims is None:
            raise SessionsAwayError("this router keeps no requests, so it cannot honour an idempotency_key")
        return self.claims
