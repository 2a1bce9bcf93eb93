"""Who used how much: in Redis, shared by all routers, or in this router alone while Redis is away.

    shoal:quota:{tenant}:…:requests   hash: level, at         a bucket that fills steadily
    shoal:quota:{tenant}:…:tokens     hash: level, at
    shoal:quota:{tenant}:…:running    sorted set: leases by the millisecond they end unless renewed

Everything of one tenant, its keys included, is under one hash tag and changed by one script. Time is the server's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol
from urllib.parse import quote

from shoal.router.limits.bucket import Bucket
from shoal.router.store.keys import tagged
from shoal.router.store.script import Client, Script

LEASE_MS = 60_000
_FULL_MS = 60_000  # after so long any bucket is full, if nothing was owed
_BUSY_MS = 500  # hint where only somebody's end makes room


@dataclass(frozen=True, slots=True)
class Scope:
    """One thing with limits, a tenant or a key of one. 0: no limit."""

    name: str
    """Empty for the tenant itself."""
    requests_per_minute: int
    tokens_per_minute: int
    concurrent: int
    max_context: int = 0
    """Most tokens of one prompt: nothing that is counted."""


@dataclass(frozen=True, slots=True)
class Refused:
    """What is used up, and when to come back."""

    what: str
    scope: str
    retry_after_ms: int


Levels = Sequence[tuple[float | None, float | None]]
"""What is left of each scope's requests and tokens; None: not known, or without a limit."""


class Ledger(Protocol):
    """Counts. All of it or nothing; `scopes` are the tenant and its key. A grant is answered by what is left."""

    async def begin(self, tenant: str, scopes: Sequence[Scope], lease: str) -> Refused | Levels:
        """A request comes: count it and one place, unless one of the scopes has no room."""
        ...

    async def spend(self, tenant: str, scopes: Sequence[Scope], tokens: int, *, owed: bool) -> Refused | Levels:
        """Take tokens (give back, when negative). `owed`: in any case."""
        ...

    async def end(self, tenant: str, scopes: Sequence[Scope], lease: str) -> None:
        """Give the place back."""
        ...


_FILL = """
local function level(key, per_minute, now)
  local kept = redis.call('HMGET', key, 'level', 'at')
  if not kept[1] then return per_minute end
  return math.min(per_minute, tonumber(kept[1]) + math.max(0, now - tonumber(kept[2])) * per_minute / 60000)
end
local function keep(key, value, now)
  redis.call('HSET', key, 'level', string.format('%.6f', value), 'at', now)
  redis.call('PEXPIRE', key, 120000)
end
local function wait(missing, per_minute)
  return math.max(1, math.ceil(missing * 60000 / per_minute))
end
local function left(key, per_minute, now)
  return per_minute > 0 and string.format('%.3f', level(key, per_minute, now)) or ''
end
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
"""

# KEYS: requests, tokens, running of each scope. ARGV: lease, its length, then three limits of each scope.
# Returns {0; requests and tokens that are left, of each scope} or {1 for requests, 2 tokens, 3 running; scope; wait}.
_BEGIN = Script(
    _FILL
    + """
for i = 0, #KEYS / 3 - 1 do
  local rpm, tpm, most = tonumber(ARGV[3 + i * 3]), tonumber(ARGV[4 + i * 3]), tonumber(ARGV[5 + i * 3])
  if rpm > 0 then
    local missing = 1 - level(KEYS[1 + i * 3], rpm, now)
    if missing > 0 then return {1, i, wait(missing, rpm)} end
  end
  if tpm > 0 then
    local missing = 1 - level(KEYS[2 + i * 3], tpm, now)
    if missing > 0 then return {2, i, wait(missing, tpm)} end
  end
  if most > 0 then
    redis.call('ZREMRANGEBYSCORE', KEYS[3 + i * 3], '-inf', now)
    if redis.call('ZCARD', KEYS[3 + i * 3]) >= most then return {3, i, 0} end
  end
end
local answer = {0}
for i = 0, #KEYS / 3 - 1 do
  local rpm, tpm, most = tonumber(ARGV[3 + i * 3]), tonumber(ARGV[4 + i * 3]), tonumber(ARGV[5 + i * 3])
  if rpm > 0 then keep(KEYS[1 + i * 3], level(KEYS[1 + i * 3], rpm, now) - 1, now) end
  if most > 0 then
    redis.call('ZADD', KEYS[3 + i * 3], now + tonumber(ARGV[2]), ARGV[1])
    redis.call('PEXPIRE', KEYS[3 + i * 3], tonumber(ARGV[2]) * 2)
  end
  answer[2 + i * 2], answer[3 + i * 2] = left(KEYS[1 + i * 3], rpm, now), left(KEYS[2 + i * 3], tpm, now)
end
return answer
"""
)

# KEYS: tokens of each scope. ARGV: amount, whether owed, then the limit of each scope. Returns as _BEGIN.
_SPEND = Script(
    _FILL
    + """
local amount = tonumber(ARGV[1])
if ARGV[2] == '0' then
  for i = 1, #KEYS do
    local tpm = tonumber(ARGV[2 + i])
    local missing = tpm > 0 and math.min(amount, tpm) - level(KEYS[i], tpm, now) or 0
    if missing > 0 then return {2, i - 1, wait(missing, tpm)} end
  end
end
local answer = {0}
for i = 1, #KEYS do
  local tpm = tonumber(ARGV[2 + i])
  if tpm > 0 then keep(KEYS[i], math.min(tpm, level(KEYS[i], tpm, now) - amount), now) end
  answer[i * 2], answer[i * 2 + 1] = '', left(KEYS[i], tpm, now)
end
return answer
"""
)

# KEYS: running of each scope. ARGV: lease, its length, whether also what is not there any more is renewed.
_RENEW = Script(
    _FILL
    + """
for i = 1, #KEYS do
  local ends = now + tonumber(ARGV[2])
  if ARGV[3] == '1' or redis.call('ZSCORE', KEYS[i], ARGV[1]) then redis.call('ZADD', KEYS[i], ends, ARGV[1]) end
  redis.call('PEXPIRE', KEYS[i], tonumber(ARGV[2]) * 2)
end
return 0
"""
)

_WHAT = {1: "requests per minute", 2: "tokens per minute", 3: "requests at once"}


class RedisLedger:
    """A `Ledger` for all routers. Methods raise what the client raises."""

    def __init__(self, client: Client) -> None:
        self._client = client

    async def begin(self, tenant: str, scopes: Sequence[Scope], lease: str) -> Refused | Levels:
        """See `Ledger`."""
        keys = [key for scope in scopes for key in _keys(tenant, scope)]
        limits = [n for s in scopes for n in (s.requests_per_minute, s.tokens_per_minute, s.concurrent)]
        return _answer(await _BEGIN.run(self._client, keys, [lease, LEASE_MS, *limits]), scopes)

    async def spend(self, tenant: str, scopes: Sequence[Scope], tokens: int, *, owed: bool) -> Refused | Levels:
        """See `Ledger`."""
        keys = [_keys(tenant, scope)[1] for scope in scopes]
        limits = [scope.tokens_per_minute for scope in scopes]
        return _answer(await _SPEND.run(self._client, keys, [tokens, int(owed), *limits]), scopes)

    async def end(self, tenant: str, scopes: Sequence[Scope], lease: str) -> None:
        """See `Ledger`."""
        client: Any = self._client
        for scope in scopes:
            if scope.concurrent:
                await client.zrem(_keys(tenant, scope)[2], lease)

    async def renew(self, tenant: str, scopes: Sequence[Scope], lease: str, *, anew: bool = False) -> None:
        """The request goes on; `anew`: although it may not be known there."""
        if keys := [_keys(tenant, scope)[2] for scope in scopes if scope.concurrent]:
            await _RENEW.run(self._client, keys, [lease, LEASE_MS, int(anew)])


def _keys(tenant: str, scope: Scope) -> tuple[str, str, str]:
    """Of one scope: requests, tokens, running."""
    base = f"{tagged('quota', tenant)}:{quote(scope.name, safe='')}"
    return f"{base}:requests", f"{base}:tokens", f"{base}:running"


def _answer(answer: Sequence[Any], scopes: Sequence[Scope]) -> Refused | Levels:
    what = int(answer[0])
    if what:
        return Refused(_WHAT[what], scopes[int(answer[1])].name, int(answer[2]) or _BUSY_MS)
    levels = [float(level) if level else None for level in answer[1:]]
    return list(zip(levels[::2], levels[1::2], strict=True))


@dataclass(slots=True)
class _Account:
    requests: Bucket
    tokens: Bucket
    running: set[str] = field(default_factory=set)


class LocalLedger:
    """A `Ledger` of this router alone, for its part of every limit.

    Told what the shared one says, it goes on from there when that is away: with this router's part of what was left.
    """

    def __init__(self, routers: int, now: Callable[[], int]) -> None:
        """`routers` share the limits; `now` gives milliseconds that never go back."""
        self._routers, self._now = routers, now
        self._accounts: dict[tuple[str, str], _Account] = {}

    async def begin(self, tenant: str, scopes: Sequence[Scope], lease: str) -> Refused | Levels:
        """See `Ledger`."""
        now, parts = self._now(), [(scope, self._part(tenant, scope)) for scope in scopes]
        for scope, account in parts:
            for what, bucket, limit in (
                (1, account.requests, scope.requests_per_minute),
                (2, account.tokens, scope.tokens_per_minute),
            ):
                if limit and (waits := bucket.wait(1, now)):
                    return Refused(_WHAT[what], scope.name, waits)
            if scope.concurrent and len(account.running) >= self._share(scope.concurrent):
                return Refused(_WHAT[3], scope.name, _BUSY_MS)
        for _, account in parts:
            account.requests.take(1, now)
            account.running.add(lease)
        return []

    async def spend(self, tenant: str, scopes: Sequence[Scope], tokens: int, *, owed: bool) -> Refused | Levels:
        """See `Ledger`."""
        now, parts = self._now(), [(scope, self._part(tenant, scope)) for scope in scopes]
        for scope, account in parts:
            if not owed and scope.tokens_per_minute and (waits := account.tokens.wait(tokens, now)):
                return Refused(_WHAT[2], scope.name, waits)
        for _, account in parts:
            account.tokens.take(tokens, now)
        return []

    async def end(self, tenant: str, scopes: Sequence[Scope], lease: str) -> None:
        """See `Ledger`."""
        for scope in scopes:
            if (account := self._accounts.get((tenant, scope.name))) is not None:
                account.running.discard(lease)

    def saw(self, tenant: str, scopes: Sequence[Scope], levels: Levels, lease: str = "") -> None:
        """So much is left where all routers count; `lease` runs here."""
        now = self._now()
        for scope, (requests, tokens) in zip(scopes, levels, strict=False):
            account = self._part(tenant, scope)
            if lease:
                account.running.add(lease)
            for bucket, level in ((account.requests, requests), (account.tokens, tokens)):
                if level is not None:
                    bucket.level, bucket.at = level / self._routers, now

    def tidy(self) -> None:
        """Forget who has been away for so long that nothing would be different."""
        now = self._now()
        self._accounts = {
            name: account
            for name, account in self._accounts.items()
            if account.running or now - max(account.requests.at, account.tokens.at) < _FULL_MS
        }

    def _share(self, limit: int) -> int:
        """Rounded down, so that all routers together never grant more; at least the smallest that means anything."""
        return max(1, limit // self._routers)

    def _part(self, tenant: str, scope: Scope) -> _Account:
        found = self._accounts.get((tenant, scope.name))
        if found is None:
            now = self._now()
            found = self._accounts[tenant, scope.name] = _Account(
                Bucket.full(self._share(scope.requests_per_minute or 1), now),
                Bucket.full(self._share(scope.tokens_per_minute or 1), now),
            )
        return found
