"""The journal in Redis: one record per accepted request, its tokens as they come, one owner at a time.

    lease = await journal.accept(record, owner, seconds)      the request is accepted: it will end with an answer
    await journal.append(lease, entries)                      pipelined; each entry is stored, known, or refused
    value = await journal.note(lease, name, value)            a fact, before it is used; the first writer's counts
    view  = await journal.read(tenant, work_id, after=0)      from a place on; view.next is the next place
    lease = await journal.take_over(tenant, work_id, owner)   attempt + 1: whoever wrote before is refused from now on
    await journal.renew(lease) · await journal.finish(lease) · await journal.release(lease)

    shoal:request:{tenant:work}         see `scripts.py`
    shoal:request:{tenant:work}:log     its tokens
    shoal:request-name:{tenant:name}    our name for the request that its caller calls so; the latest one

The keys of a request expire, at the latest, `keep_seconds` after its deadline. Every method raises SessionsAwayError
when Redis does not answer; then nothing is half-written. A writer that did not get an answer may write again.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

from redis.exceptions import NoScriptError

from shoal.proto.v1.journal_pb2 import JournalTokens, RequestRecord
from shoal.proto.v1.worker_pb2 import SEQUENCE_FINISH_UNSPECIFIED
from shoal.router.errors import (
    JournalFullError,
    JournalGapError,
    RequestAbsentError,
    RequestHeldError,
    RequestOverError,
    TakenOverError,
    WireError,
)
from shoal.router.journal import scripts
from shoal.router.journal.lease import JournalLimits, JournalView, Lease
from shoal.router.store.away import ABSENT, answering
from shoal.router.store.keys import tagged
from shoal.router.store.script import Argument, Client


class Journal:
    """Journals of requests by tenant and our name for them, over one client."""

    def __init__(self, client: Client, limits: JournalLimits | None = None) -> None:
        self._client = client
        self.limits = limits or JournalLimits()
        self._lease_ms = int(self.limits.lease_seconds * 1000)

    async def accept(self, record: RequestRecord, owner: str, seconds: float) -> Lease:
        """Keep the record; `seconds` are left until its deadline. Raises RequestHeldError when that name is in use."""
        ttl_ms = math.ceil((max(0.0, seconds) + self.limits.keep_seconds) * 1000)
        tenant, work_id, name = record.tenant, record.work_id, record.request_id
        raw = record.SerializeToString(deterministic=True)
        async with answering("requests"):
            arguments = (raw, owner, self._lease_ms, ttl_ms)
            (word, *_) = await scripts.ACCEPT.run(self._client, [_key(tenant, work_id)], arguments)
            if word == b"accepted" and name and name != work_id:
                await self._client.set(_name_key(tenant, name), work_id, px=ttl_ms)
        if word != b"accepted":
            raise RequestHeldError(f"request {work_id!r} was accepted before")
        return Lease(tenant, work_id, 1, owner)

    async def exists(self, tenant: str, work_id: str) -> bool:
        """Whether the request is kept."""
        async with answering("requests"):
            return bool(await self._client.exists(_key(tenant, work_id)))

    async def find(self, tenant: str, name: str) -> str:
        """Our name for the request that the caller calls `name`, or that is called so already.

        Raises RequestAbsentError.
        """
        async with answering("requests"):
            if await self._client.exists(_key(tenant, name)):
                return name
            found: Any = await self._client.get(_name_key(tenant, name))
        if found is None:
            raise _absent(name)
        return str(found.decode())

    async def append(self, lease: Lease, entries: Sequence[JournalTokens]) -> None:
        """Keep tokens, in order. Entries that are known already count as stored. See `append_all` for errors."""
        (outcome,) = await self.append_all([(lease, entries)])
        if outcome is not None:
            raise outcome

    async def append_all(self, batches: Iterable[tuple[Lease, Sequence[JournalTokens]]]) -> list[WireError | None]:
        """Keep tokens of many requests in one round trip; for each request None, or why its entries were refused:

        TakenOverError     the attempt is not the latest; or within it the owner's try, or within that the epoch
        JournalGapError    tokens before them, or some of them, are missing or known
        JournalFullError   the bound on a request's bytes is reached
        RequestOverError   the request ended
        RequestAbsentError it expired
        """
        listed = list(batches)
        runs = [self._append_arguments(lease, entry) for lease, entries in listed for entry in entries]
        async with answering("requests"):
            answers = iter(await self._run_all(runs))
        outcomes: list[WireError | None] = []
        for lease, entries in listed:
            errors = [error for _ in entries if (error := _refusal(lease, next(answers))) is not None]
            outcomes.append(errors[0] if errors else None)
        return outcomes

    async def note(self, lease: Lease, name: str, value: bytes) -> bytes:
        """Keep a fact before it is used, such as a tool's result. Returns what is kept under the name: `value`, or
        what an earlier attempt wrote. Raises as `append_all` says."""
        key = _key(lease.tenant, lease.work_id)
        arguments = (lease.attempt, name, value, self.limits.most_bytes)
        async with answering("requests"):
            answer = await scripts.NOTE.run(self._client, [key], arguments)
        if (error := _refusal(lease, answer)) is not None:
            raise error
        return bytes(answer[1])

    async def read(self, tenant: str, work_id: str, after: int = 0) -> JournalView | None:
        """The journal; None when there is none. With `after`, the `next` of an earlier view, only what is new and no
        record."""
        key = _key(tenant, work_id)
        async with answering("requests"):
            word, *rest = await scripts.READ.run(self._client, [key, f"{key}:log"], (after,))
        if word == b"absent":
            return None
        now, listed, raw_entries = rest
        fields: dict[bytes, bytes] = dict(zip(listed[::2], listed[1::2], strict=True))
        tokens = tuple(JournalTokens.FromString(raw) for raw in raw_entries)
        state: Any = fields[b"state"].decode()
        return JournalView(
            record=RequestRecord.FromString(fields[b"record"]) if b"record" in fields else None,
            attempt=int(fields[b"attempt"]),
            owner=fields[b"owner"].decode(),
            state=state,
            outcome=fields.get(b"outcome", b"").decode(),
            orphaned=state == "running" and int(fields[b"lease_until"]) <= now,
            tokens=tokens,
            notes={
                name.removeprefix(b"note:").decode(): value
                for name, value in fields.items()
                if name.startswith(b"note:")
            },
            next=after + len(tokens),
        )

    async def take_over(
        self, tenant: str, work_id: str, owner: str, *, attempt: int = 0, orphaned: bool = True
    ) -> Lease:
        """Become the owner: attempt + 1, and every write of an older attempt is refused from now on.

        `attempt`, if not 0, must be the present one, so that of many who want it one gets it. `orphaned`: only when the
        owner's lease ran out; False takes it from an owner that lives, for a client that lost it.
        Raises RequestAbsentError, RequestOverError, TakenOverError (another was faster) and RequestHeldError (its
        owner lives; `retry_after_ms` is what is left of the lease).
        """
        arguments = (owner, self._lease_ms, attempt, int(orphaned))
        async with answering("requests"):
            word, *rest = await scripts.TAKE_OVER.run(self._client, [_key(tenant, work_id)], arguments)
        if word == b"held":
            raise RequestHeldError(f"request {work_id!r} runs on another router", retry_after_ms=int(rest[0]))
        if word != b"taken":
            error = _refusal(Lease(tenant, work_id, attempt, owner), [word, *rest])
            assert error is not None, f"the script answered {word!r}"
            raise error
        return Lease(tenant, work_id, int(rest[0]), owner)

    async def renew(self, lease: Lease) -> None:
        """Say that its owner lives; appending says so too. Raises as `append_all` says."""
        await self._renew(lease, self._lease_ms)

    async def release(self, lease: Lease) -> None:
        """Let anybody take it over at once. Raises as `append_all` says."""
        await self._renew(lease, 0)

    async def finish(self, lease: Lease, outcome: str = "", *, failed: bool = False) -> None:
        """It ended, well or with `outcome`; it is kept for a while. Saying so twice counts once. Raises as
        `append_all` says."""
        key = _key(lease.tenant, lease.work_id)
        keep_ms = int(self.limits.keep_seconds * 1000)
        arguments = (lease.attempt, "failed" if failed else "done", outcome, keep_ms)
        async with answering("requests"):
            answer = await scripts.FINISH.run(self._client, [key, f"{key}:log"], arguments)
        if (error := _refusal(lease, answer)) is not None:
            raise error

    async def forget(self, tenant: str, work_id: str) -> None:
        """Remove everything, such as when its session is deleted."""
        key = _key(tenant, work_id)
        async with answering("requests"):
            await self._client.delete(key, f"{key}:log")

    async def _renew(self, lease: Lease, lease_ms: int) -> None:
        async with answering("requests"):
            key = _key(lease.tenant, lease.work_id)
            answer = await scripts.RENEW.run(self._client, [key], (lease.attempt, lease_ms))
        if (error := _refusal(lease, answer)) is not None:
            raise error

    def _append_arguments(self, lease: Lease, entry: JournalTokens) -> tuple[list[str], tuple[Argument, ...]]:
        key = _key(lease.tenant, lease.work_id)
        entry.attempt = lease.attempt
        over = entry.finish != SEQUENCE_FINISH_UNSPECIFIED
        lane = f"{entry.choice}.{entry.round}"
        raw = entry.SerializeToString()
        numbers = (lease.attempt, lane, entry.tried, entry.epoch, entry.offset, len(entry.ids), int(over))
        return [key, f"{key}:log"], (*numbers, raw, self._lease_ms, self.limits.most_bytes)

    async def _run_all(self, runs: Sequence[tuple[list[str], tuple[Argument, ...]]]) -> list[Any]:
        """The answers to all appends, in order. A server that does not know the script yet is told and asked again:
        what is known already counts as stored, so asking twice does no harm."""
        if not runs:
            return []
        pipeline: Any = self._client.pipeline(transaction=False)
        for keys, arguments in runs:
            scripts.APPEND.queue(pipeline, keys, arguments)
        answers: list[Any] = await pipeline.execute(raise_on_error=False)
        if any(isinstance(answer, NoScriptError) for answer in answers):
            answers = [await scripts.APPEND.run(self._client, keys, arguments) for keys, arguments in runs]
        for answer in answers:
            if isinstance(answer, ABSENT):
                raise answer
        return answers


def _refusal(lease: Lease, answer: Sequence[Any]) -> WireError | None:
    """What a script's answer means; None for well."""
    name = lease.work_id
    match answer[0]:
        case b"stored" | b"known" | b"renewed" | b"finished":
            return None
        case b"stale_attempt":
            return TakenOverError(f"request {name!r} was taken over: attempt {lease.attempt} is not {int(answer[1])}")
        case b"stale_epoch":
            tried, epoch = int(answer[1]), int(answer[2])
            return TakenOverError(f"request {name!r} has tokens of try {tried}, epoch {epoch}: older ones are refused")
        case b"gap" | b"overlap":
            return JournalGapError(name, int(answer[1]))
        case b"full":
            return JournalFullError(f"request {name!r} has as much in its journal as may be kept")
        case b"over":
            return RequestOverError(f"request {name!r} ended")
        case b"absent":
            return _absent(name)
        case word:
            raise AssertionError(f"the script answered {word!r}")


def _absent(name: str) -> RequestAbsentError:
    return RequestAbsentError(f"there is no request {name!r}")


def _key(tenant: str, work_id: str) -> str:
    return tagged("request", tenant, work_id)


def _name_key(tenant: str, name: str) -> str:
    return tagged("request-name", tenant, name)
