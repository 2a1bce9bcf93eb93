"""Everything that stands between callers and the model, put together as the configuration wants it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from shoal.router.access.assemble import build_guard
from shoal.router.access.caller import Caller, serving
from shoal.router.access.door import Door, OpenDoor, Shown
from shoal.router.access.guard import Guard
from shoal.router.access.table import GENERATING
from shoal.router.audit.assemble import build_trail
from shoal.router.audit.trail import Trail
from shoal.router.config import RouterConfig
from shoal.router.errors import AuditError, StartError
from shoal.router.limits.ledger import RedisLedger
from shoal.router.limits.policy import Policies, Policy, PolicyError, Recorded
from shoal.router.limits.quota import Quotas
from shoal.router.safeguards.moderation import Moderator
from shoal.router.safeguards.pipeline import Safeguards
from shoal.router.store.script import Client
from shoal.wire.status import status_of

KeepRunning = Callable[[str, Coroutine[None, None, None]], None]


@dataclass(frozen=True, slots=True)
class Protection:
    """Who may come in, how much they may use, and what is recorded of it."""

    door: Door
    policies: Policies
    quotas: Quotas | None = None
    """None: nobody's use is counted."""
    trail: Trail | None = None
    """None: nothing is recorded."""
    safeguards: Safeguards = field(default_factory=Safeguards)

    @classmethod
    def build(cls, config: RouterConfig, client: Client | None) -> Protection:
        """Raises StartError naming the setting that is wrong."""
        try:
            policies = Policies(config.limits, _usual(config))
        except (OSError, PolicyError) as error:
            raise StartError(f"limits.tenants_file: {error}") from error
        door: Door = build_guard(config.access, client) if config.access.required else OpenDoor()
        shared = RedisLedger(client) if client is not None else None
        quotas = Quotas(config.limits, policies, shared, time.monotonic) if config.limits.enforced else None
        return cls(door, policies, quotas, build_trail(config.audit, config.router_id), Safeguards(_moderator(config)))

    async def start(self, config: RouterConfig, keep_running: KeepRunning) -> None:
        """What goes on in the background."""
        if isinstance(self.door, Guard):
            await self.door.keyring.refresh()
            keep_running("keys", self.door.watch(config.access.refresh))
        keep_running("policies", self.policies.keep())
        if self.quotas is not None:
            keep_running("quotas", self.quotas.keep())

    @asynccontextmanager
    async def entering(self, shown: Shown, method: str) -> AsyncGenerator[Caller, None]:
        """Who it is, who is served inside. Recorded are those who are not let in, and what generates nothing: the front
        records what does. Raises as `Door.admit` and `Trail.called` do."""
        caller: Caller | None = None
        try:
            caller = await self.door.admit(shown, method)
            with serving(caller):
                yield caller
        except BaseException as error:
            if self._records(caller, method):
                status = status_of(error)
                with suppress(AuditError):  # the error is what is told
                    await asyncio.shield(self._record(caller, method, f"{status.code.name} {status.reason}"))
            raise
        else:
            if self._records(caller, method):
                await self._record(caller, method, "OK")

    def kept(self, tenant: str, value: Any) -> Any:
        """A JSON value as it may be stored for a tenant."""
        return self.safeguards.redacted(value, self.policies.of(tenant))

    def _records(self, caller: Caller | None, method: str) -> bool:
        return self.trail is not None and (caller is None or method not in GENERATING)

    async def _record(self, caller: Caller | None, method: str, outcome: str) -> None:
        assert self.trail is not None
        await self.trail.called(caller, method, outcome)

    async def close(self) -> None:
        """When nothing is served any more."""
        if self.trail is not None:
            await self.trail.close()


def _usual(config: RouterConfig) -> Policy:
    """What holds for tenants without a policy; limits come from [limits] themselves."""
    guards = config.safeguards
    how: Recorded = config.audit.usual  # type: ignore[assignment]  # checked by AuditConfig
    return Policy(audit=how, redact=guards.redact, deny=guards.deny, moderate=bool(guards.moderation_url))


def _moderator(config: RouterConfig) -> Moderator | None:
    guards = config.safeguards
    if not guards.moderation_url:
        return None
    try:
        key = Path(guards.moderation_key_file).read_text().strip() if guards.moderation_key_file else ""
    except OSError as error:
        raise StartError(f"safeguards.moderation_key_file: {error.strerror}") from error
    refuse = guards.moderation_on_failure == "refuse"
    return Moderator(guards.moderation_url, guards.moderation_model, key, guards.moderation_seconds, refuse)
