"""Who is asked for credentials, and what counts as one."""

from __future__ import annotations

from dataclasses import dataclass

from shoal.wire.settings import requirer

ALGORITHMS = (
    "RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA",
)  # fmt: skip
"""Signatures that a token may have. Only those whose key cannot make them: no HMAC, and never none."""


@dataclass(frozen=True, slots=True)
class AccessConfig:
    """The [access] section. A wrong value raises SettingError naming its key."""

    required: bool = False
    """Ask for credentials. Without it everybody is the tenant "default" and may do everything."""
    keys_file: str = ""
    """API keys and certificates that are known, as `shoal keys` writes them; a mounted secret will do."""
    keys_in_redis: bool = True
    """Know those in Redis, too."""
    operators: tuple[str, ...] = ()
    """Tenants whose admins and operators may change the cluster itself through a router, and whose viewers and auditors
    may look at it: its workers are everybody's. Nobody, unless named."""
    refresh: float = 1.0
    """Time between two looks at them, in seconds: a revoked one ends, streams included, within it."""
    jwks: str = ""
    """Where the public keys of tokens are: a file, or an https:// URL; empty: tokens are not believed."""
    jwks_ca: str = ""
    """CAs that the URL's server is checked by; empty: those of the machine."""
    jwks_refresh: float = 300.0
    """Time between two looks at them, in seconds; a token with an unknown key looks earlier."""
    issuer: str = ""
    """What tokens must say as `iss`."""
    audience: str = ""
    """What tokens must say as `aud`."""
    algorithms: tuple[str, ...] = ("RS256", "ES256", "EdDSA")
    """Signatures that tokens may have."""
    tenant_claim: str = "tenant"
    """Where a token says its tenant; parts of a path are parted by dots."""
    role_claim: str = "role"
    """Where it says its role, or a list with one role among its words."""
    leeway: float = 10.0
    """How much other clocks may be off, in seconds."""

    def __post_init__(self) -> None:
        require = requirer("access", self)
        require("refresh", self.refresh > 0, "above 0")
        require("jwks_refresh", self.jwks_refresh > 0, "above 0")
        require("leeway", 0 <= self.leeway <= 300, "0 to 300")
        local = "://" not in self.jwks
        require("jwks", local or self.jwks.startswith("https://"), "a file or an https:// URL")
        if self.jwks:
            for key in ("issuer", "audience", "tenant_claim", "role_claim"):
                require(key, getattr(self, key) != "", "given where tokens are believed")
        known = bool(self.algorithms) and set(self.algorithms) <= set(ALGORITHMS)
        require("algorithms", known, f"some of {', '.join(ALGORITHMS)}")
