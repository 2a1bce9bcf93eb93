"""The door as the configuration wants it."""

from __future__ import annotations

import time

from shoal.router.access.config import AccessConfig
from shoal.router.access.guard import Guard
from shoal.router.access.jwks import Jwks
from shoal.router.access.key_store import FileKeys, KeyStore, RedisKeys
from shoal.router.access.keyring import Keyring
from shoal.router.access.token import Tokens
from shoal.router.errors import StartError
from shoal.router.store.script import Client


def build_guard(config: AccessConfig, client: Client | None) -> Guard:
    """Raises StartError when nobody could ever be let in."""
    stores: list[KeyStore] = [FileKeys(config.keys_file)] if config.keys_file else []
    if config.keys_in_redis and client is not None:
        stores.append(RedisKeys(client))
    tokens = None
    if config.jwks:
        tokens = Tokens(config, Jwks(config.jwks, config.jwks_ca, config.jwks_refresh, time.monotonic), time.time)
    if not stores and tokens is None:
        raise StartError(
            "access.required: there is nothing to know callers by; "
            "set access.keys_file, router.redis_url or access.jwks"
        )
    return Guard(Keyring(stores), tokens, time.time)
