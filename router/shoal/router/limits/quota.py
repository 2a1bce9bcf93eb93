"""Limits applied to requests: one allowance each, from before its place in the queue to its end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Protocol, TypeVar

import structlog

from shoal.router.access.caller import Caller
from shoal.router.errors import PromptTooLongError, QuotaError
from shoal.router.limits.backoff import Backoff
from shoal.router.limits.config import LimitsConfig
from shoal.router.limits.ledger import LEASE_MS, Ledger, Levels, LocalLedger, RedisLedger, Refused, Scope
from shoal.router.limits.policy import Policies
from shoal.router.store.away import ABSENT

_PATIENCE = 1.0  # seconds that the shared ledger has to answer
_PAUSE = 1.0  # seconds in which it is not asked again when it did not

_T = TypeVar("_T")

_log = structlog.get_logger(__name__)


class Allowance(Protocol):
    """What one request may still use."""

    async def prompt(self, tokens: int, most_output: int) -> None:
        """Its prompt has so many tokens, and it wants at most so many more: set them aside.

        Raises PromptTooLongError and QuotaError; called before anything is computed.
        """
        ...

    async def output(self, tokens: int) -> None:
        """So many tokens were generated, all in all. Raises QuotaError when no more can be had."""
        ...

    async def grown(self, tokens: int) -> None:
        """The prompt has so many tokens more: what a tool of the server answered. Raises QuotaError."""
        ...


class NoLimit:
    """An `Allowance` that never ends."""

    async def prompt(self, tokens: int, most_output: int) -> None:
        """See `Allowance`."""

    async def output(self, tokens: int) -> None:
        """See `Allowance`."""

    async def grown(self, tokens: int) -> None:
        """See `Allowance`."""


class Quotas:
    """Hands out allowances. Belongs to one event loop."""

    def __init__(
        self,
        config: LimitsConfig,
        policies: Policies,
        shared: RedisLedger | None,
        clock: Callable[[], float],
    ) -> None:
        """`shared` None: this router counts alone. `clock` gives seconds that never go back."""
        self._config, self._policies, self._shared, self._clock = config, policies, shared, clock
        self._local = LocalLedger(config.routers if shared is not None else 1, lambda: int(clock() * 1000))
        self._backoff = Backoff(config.tolerance, config.longest_backoff)
        self._leases: dict[str, tuple[str, tuple[Scope, ...]]] = {}
        self._away = False
        self._asks_from = 0.0  # on `clock`: before that the shared ledger is not asked

    def struck(self, caller: Caller) -> None:
        """The caller was refused for something of its own making."""
        self._backoff.strike(_name(caller), self._clock())

    @asynccontextmanager
    async def allowed(self, caller: Caller, lease: str, key: Scope | None) -> AsyncGenerator[Allowance, None]:
        """What a request may use, while it is served; `key` are its key's own limits. Raises QuotaError."""
        if held := self._backoff.held(_name(caller), self._clock()):
            self.struck(caller)
            raise QuotaError("this key was refused too often and is held off", retry_after_ms=int(held * 1000) + 1)
        policy = self._policies.of(caller.tenant)
        limits = policy.requests_per_minute, policy.tokens_per_minute, policy.concurrent, policy.max_context
        whole = Scope("", *limits)
        scopes = (whole, key) if key is not None else (whole,)
        account = _Account(self, caller, scopes, self._config.reserve_tokens)
        self._leases[lease], begun = (caller.tenant, scopes), True
        try:
            try:
                await self._begin(caller, scopes, lease)
            except QuotaError:
                begun = False
                raise
            yield account
        finally:
            del self._leases[lease]
            if begun:  # however it ends, also by cancellation, its place and what it did not use are given back
                await asyncio.shield(self._settle(caller.tenant, scopes, lease, account))

    async def _begin(self, caller: Caller, scopes: tuple[Scope, ...], lease: str) -> None:
        _, told = await self._at_ledger(lambda ledger: ledger.begin(caller.tenant, scopes, lease))
        await self._granted(caller, scopes, told, lease)

    async def spend(self, caller: Caller, scopes: tuple[Scope, ...], tokens: int) -> Ledger:
        """Take tokens, or raise QuotaError. Returns where they were taken."""
        ledger, told = await self._at_ledger(lambda at: at.spend(caller.tenant, scopes, tokens, owed=False))
        await self._granted(caller, scopes, told)
        return ledger

    async def keep(self) -> None:
        """Renew the places of what runs, for ever."""
        while True:
            await asyncio.sleep(LEASE_MS / 4000)
            self._local.tidy()
            await self._renew(anew=False)

    async def _renew(self, *, anew: bool) -> None:
        for lease, (tenant, scopes) in list(self._leases.items()):
            if self._shared is not None and lease in self._leases:
                with suppress(*ABSENT):
                    await self._shared.renew(tenant, scopes, lease, anew=anew)

    async def _settle(self, tenant: str, scopes: tuple[Scope, ...], lease: str, account: _Account) -> None:
        back, taken_at = account.unused, account.taken_at
        if back and taken_at is self._local:  # what one ledger gave the other does not get back
            await self._local.spend(tenant, scopes, -back, owed=True)
        elif back:
            await self._at_shared(lambda ledger: ledger.spend(tenant, scopes, -back, owed=True))
        await self._local.end(tenant, scopes, lease)
        await self._at_shared(lambda ledger: ledger.end(tenant, scopes, lease))

    async def _at_ledger(self, act: Callable[[Ledger], Awaitable[Refused | Levels]]) -> tuple[Ledger, Refused | Levels]:
        """At the shared ledger, or while it is away at our own."""
        told = await self._at_shared(act)
        return (self._local, await act(self._local)) if told is None or self._shared is None else (self._shared, told)

    async def _at_shared(self, act: Callable[[Ledger], Awaitable[_T]]) -> _T | None:
        """At the shared ledger; None while it is away. Then it is asked once a second, so that nobody else waits."""
        if self._shared is None or self._clock() < self._asks_from:
            return None
        try:
            async with asyncio.timeout(_PATIENCE):
                done = await act(self._shared)
        except ABSENT as error:
            if not self._away:
                _log.warning("quotas_are_local", problem=type(error).__name__, routers=self._config.routers)
            self._away, self._asks_from = True, self._clock() + _PAUSE
            return None
        if self._away:
            self._away = False
            await self._renew(anew=True)  # what began meanwhile, and what it may have forgotten
        return done

    async def _granted(
        self, caller: Caller, scopes: tuple[Scope, ...], told: Refused | Levels, lease: str = ""
    ) -> None:
        if isinstance(told, Refused):
            await self._refuse(caller, told)
        else:
            self._local.saw(caller.tenant, scopes, told, lease)

    async def _refuse(self, caller: Caller, refused: Refused) -> None:
        self.struck(caller)
        whose = "this key" if refused.scope else f"the tenant {caller.tenant!r}"
        raise QuotaError(f"{whose} has used up its {refused.what}", retry_after_ms=refused.retry_after_ms)


def _name(caller: Caller) -> str:
    return f"{caller.tenant}\0{caller.key_id}"


class _Account:
    """An `Allowance` of a tenant and a key."""

    def __init__(self, quotas: Quotas, caller: Caller, scopes: tuple[Scope, ...], reserve: int) -> None:
        self._quotas, self._caller, self._scopes, self._reserve = quotas, caller, scopes, reserve
        self._counts = any(scope.tokens_per_minute for scope in scopes)
        self._prompt = self._output = self._taken = 0
        self._most_output = 0
        self.taken_at: Ledger | None = None
        """Where tokens were taken last: whatever is unused is of those."""

    @property
    def unused(self) -> int:
        """Tokens set aside and not used."""
        return self._taken - self._prompt - self._output if self._counts else 0

    async def prompt(self, tokens: int, most_output: int) -> None:
        """See `Allowance`."""
        most = min((scope.max_context for scope in self._scopes if scope.max_context), default=0)
        if most and tokens >= most:
            raise PromptTooLongError(tokens, most)
        self._most_output = most_output
        if self._counts:
            await self._take(tokens + min(most_output, self._reserve))
        self._prompt = tokens

    async def output(self, tokens: int) -> None:
        """See `Allowance`."""
        self._output = tokens
        short = self._prompt + tokens - self._taken
        if self._counts and short > 0:
            left = max(0, self._most_output - tokens)
            await self._take(max(short, min(left, self._reserve)))

    async def grown(self, tokens: int) -> None:
        """See `Allowance`."""
        short = self._prompt + tokens + self._output - self._taken
        if self._counts and short > 0:
            await self._take(short)
        self._prompt += tokens

    async def _take(self, tokens: int) -> None:
        self.taken_at = await self._quotas.spend(self._caller, self._scopes, tokens)
        self._taken += tokens
