"""Tenants: whose something is. Which tenant asks is `access.caller`'s."""

from __future__ import annotations

import hashlib

DEFAULT_TENANT = "default"
"""Everybody's, where no credentials are asked for."""


def cache_salt(tenant: str) -> bytes:
    """Separates tenants in the workers' prefix caches without telling workers their names."""
    return hashlib.sha256(b"shoal prefix cache\0" + tenant.encode()).digest()[:16]
