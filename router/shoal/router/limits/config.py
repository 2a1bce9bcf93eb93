"""Limits for tenants that have no policy of their own, and how they are kept."""

from __future__ import annotations

from dataclasses import dataclass

from shoal.wire.settings import requirer


@dataclass(frozen=True, slots=True)
class LimitsConfig:
    """The [limits] section. A wrong value raises SettingError naming its key."""

    enforced: bool = False
    """Count requests and tokens, and refuse what is too much. Fair queueing happens in any case."""
    tenants_file: str = ""
    """Policies of tenants, TOML: a table per tenant with settings of this section, see the deployment guide; read
    again when it changes."""
    requests_per_minute: int = 0
    """Of one tenant; 0: no limit."""
    tokens_per_minute: int = 0
    """Of one tenant, prompts and outputs together; 0: no limit."""
    concurrent: int = 0
    """Requests of one tenant at once; 0: no limit."""
    max_context: int = 0
    """Most tokens of one prompt of a tenant; 0: what the model takes."""
    tenant_share: float = 1.0
    """Most of router.max_running that one tenant may take. However much one tenant asks for, another one waits at most
    for the end of one request, and with 0.5 for nothing while all others together keep to the other half: its first
    token is as soon as alone."""
    reserve_tokens: int = 1024
    """Output tokens set aside at a time: a request is stopped when no more can be had."""
    routers: int = 1
    """Routers that share the limits: while Redis is away each grants its part."""
    tolerance: int = 20
    """Refusals of one key within a minute, after which it is held off for a while, longer each time: for what is too
    much, and for what safeguards do not allow. Each router counts its own; only where limits are `enforced`."""
    longest_backoff: float = 60.0
    """Most that it is held off, in seconds."""

    def __post_init__(self) -> None:
        require = requirer("limits", self)
        for key in ("requests_per_minute", "tokens_per_minute", "concurrent", "max_context"):
            require(key, getattr(self, key) >= 0, "0 or more")
        for key in ("reserve_tokens", "routers", "tolerance"):
            require(key, getattr(self, key) >= 1, "at least 1")
        require("tenant_share", 0 < self.tenant_share <= 1, "above 0 and at most 1")
        require("longest_backoff", self.longest_backoff > 0, "above 0")
