"""Limits applied to requests: one allowance each, from before its place in the queue to its end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Protocol

import redis
import structlog

from shoal.router.access.caller import Caller
from shoal.router.errors import PromptTooLongError, QuotaError
from shoal.router.limits.backoff import Backoff
from shoal.router.limits.config import LimitsConfig
from shoal.router.limits.ledger import LEASE_MS, Ledger, LocalLedger, RedisLedger, Refused, Scope
from shoal.router.limits.policy import Policies, Policy
from shoal.router.store.away import ABSENT

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


class NoLimit:
    """An `Allowance` that never ends."""

    async def prompt(self, tokens: int, most_output: int) -> None:
        """See `Allowance`."""

    async def output(self, tokens: int) -> None:
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
        whole = Scope("", policy.requests_per_minute, policy.tokens_per_minute, policy.concurrent)
        scopes = (whole, key) if key is not None else (whole,)
        await self._refuse(caller, await self._ledger_do("begin", caller.tenant, scopes, lease))
        self._leases[lease] = (caller.tenant, scopes)
        account = _Account(self, caller, policy, scopes, self._config.reserve_tokens)
        try:
            yield account
        finally:
            del self._leases[lease]
            # However the request ends, also by cancellation, its place and what it did not use are given back.
            await asyncio.shield(self._settle(caller.tenant, scopes, lease, account))

    async def spend(self, caller: Caller, scopes: tuple[Scope, ...], tokens: int) -> None:
        """Take tokens, or raise QuotaError."""
        await self._refuse(caller, await self._ledger_do("spend", caller.tenant, scopes, tokens))

    async def keep(self) -> None:
        """Renew the places of what runs, for ever."""
        while True:
            await asyncio.sleep(LEASE_MS / 4000)
            for lease, (tenant, scopes) in list(self._leases.items()):
                if self._shared is not None:
                    with suppress(*ABSENT):
                        await self._shared.renew(tenant, scopes, lease)

    async def _settle(self, tenant: str, scopes: tuple[Scope, ...], lease: str, account: _Account) -> None:
        if back := account.unused:
            await self._ledger_do("give back", tenant, scopes, -back)
        await self._ledger_do("end", tenant, scopes, lease)

    async def _ledger_do(self, what: str, tenant: str, scopes: tuple[Scope, ...], value: str | int) -> Refused | None:
        """At the shared ledger, or while it is away at our own."""
        if self._shared is not None:
            try:
                done = await _do(self._shared, what, tenant, scopes, value)
            except (redis.RedisError, OSError) as error:
                if not self._away:
                    _log.warning("quotas_are_local", problem=type(error).__name__, routers=self._config.routers)
                self._away = True
            else:
                if self._away:
                    self._away = False
                    self._local.forget()
                return done
        return await _do(self._local, what, tenant, scopes, value)

    async def _refuse(self, caller: Caller, refused: Refused | None) -> None:
        if refused is None:
            return
        self.struck(caller)
        whose = "this key" if refused.scope else f"the tenant {caller.tenant!r}"
        raise QuotaError(f"{whose} has used up its {refused.what}", retry_after_ms=refused.retry_after_ms)


async def _do(ledger: Ledger, what: str, tenant: str, scopes: tuple[Scope, ...], value: str | int) -> Refused | None:
    match what:
        case "begin":
            return await ledger.begin(tenant, scopes, str(value))
        case "spend":
            return await ledger.spend(tenant, scopes, int(value), owed=False)
        case "give back":
            return await ledger.spend(tenant, scopes, int(value), owed=True)
        case _:
            await ledger.end(tenant, scopes, str(value))
            return None


def _name(caller: Caller) -> str:
    return f"{caller.tenant}\0{caller.key_id}"


class _Account:
    """An `Allowance` of a tenant and a key."""

    def __init__(self, quotas: Quotas, caller: Caller, policy: Policy, scopes: tuple[Scope, ...], reserve: int) -> None:
        self._quotas, self._caller, self._policy, self._scopes, self._reserve = quotas, caller, policy, scopes, reserve
        self._counts = any(scope.tokens_per_minute for scope in scopes)
        self._prompt = self._output = self._taken = 0
        self._most_output = 0

    @property
    def unused(self) -> int:
        """Tokens set aside and not used."""
        return self._taken - self._prompt - self._output if self._counts else 0

    async def prompt(self, tokens: int, most_output: int) -> None:
        """See `Allowance`."""
        most = self._policy.max_context
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

    async def _take(self, tokens: int) -> None:
        await self._quotas.spend(self._caller, self._scopes, tokens)
        self._taken += tokens
