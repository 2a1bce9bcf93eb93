"""Everything that stands between callers and the model, put together as the configuration wants it."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from shoal.router.access.assemble import build_guard
from shoal.router.access.caller import serving
from shoal.router.access.door import Door, OpenDoor, Shown
from shoal.router.access.guard import Guard
from shoal.router.audit.assemble import build_trail
from shoal.router.audit.trail import Trail
from shoal.router.audit.visit import Visit, visiting
from shoal.router.config import RouterConfig
from shoal.router.errors import StartError
from shoal.router.limits.ledger import RedisLedger
from shoal.router.limits.policy import Policies, Policy, PolicyError, Recorded
from shoal.router.limits.quota import Quotas
from shoal.router.safeguards.moderation import Moderator
from shoal.router.safeguards.pipeline import Safeguards
from shoal.router.store.script import Client
from shoal.wire.status import WireError

_LONGEST_NAME = 256  # characters of what a record is about

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
            lacks_key = bool(config.audit.directory) and not config.audit.encryption_key_file
            policies = Policies(config.limits, _usual(config), encrypts=not lacks_key)
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
    async def entering(self, shown: Shown, method: str, about: str = "") -> AsyncGenerator[Visit, None]:
        """Who it is, who is served inside. Recorded is everything that the front does not record: those who are not
        let in, what generates nothing, and what came to nothing before the front. What changes something is recorded
        before it does, too. `about`: what it is about, by name. Raises as `Door.admit` and `Trail.called` do."""
        visit = Visit(self.trail, method, about[:_LONGEST_NAME])
        try:
            visit.caller = await self.door.admit(shown, method)
            with serving(visit.caller), visiting(visit):
                await visit.begin()
                yield visit
        except BaseException as error:
            await visit.failed(error)
            raise
        else:
            await visit.done()

    async def look(self, shown: Shown, method: str) -> None:
        """The same for a page: recorded are those who are not let in, not every look. Raises as `Door.admit` does."""
        try:
            await self.door.admit(shown, method)
        except WireError as error:
            await Visit(self.trail, method).failed(error)
            raise

    def kept(self, tenant: str, value: Any) -> Any:
        """A JSON value as it may be stored for a tenant."""
        return self.safeguards.redacted(value, self.policies.of(tenant))

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
