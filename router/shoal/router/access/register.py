"""Making, listing, renewing and revoking keys, wherever they are kept."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from shoal.router.access.caller import Role
from shoal.router.access.key import BadKeyError, Key, make_secret
from shoal.router.access.key_store import KeyStore


class NoSuchKeyError(LookupError):
    """No key has that id."""


@dataclass(frozen=True, slots=True)
class Register:
    """Changes a store. Methods raise KeysAwayError. `now` is unix time."""

    store: KeyStore
    now: Callable[[], float]

    async def create(
        self, tenant: str, role: Role, *, name: str = "", certificate: str = "", seconds: float = 0.0, **limits: int
    ) -> tuple[Key, str]:
        """A new key and what its owner shows, which cannot be had again; nothing for a certificate.

        `seconds`: how long it counts, 0 for ever; `limits` as in `Key`. Raises BadKeyError.
        """
        now = self.now()
        identifier, digest, shown = make_secret()
        if certificate:
            digest, shown = "", ""
            if any(key.certificate == certificate and key.holds(now) for key in await self.store.all()):
                raise BadKeyError(f"{certificate} is known already: revoke that key first")
        expires = now + seconds if seconds else 0.0
        key = Key(identifier, tenant, role, digest, certificate, name, now, expires, **limits)
        await self.store.put(key)
        return key, shown

    async def all(self) -> Sequence[Key]:
        """Every key, oldest first, those that do not count any more included."""
        return sorted(await self.store.all(), key=lambda key: (key.created, key.id))

    async def revoke(self, key_id: str) -> Key:
        """From now on it does not count. Raises NoSuchKeyError. To repeat it changes nothing."""
        key = await self._find(key_id)
        if not key.revoked:
            key = replace(key, revoked=self.now())
            await self.store.put(key)
        return key

    async def rotate(self, key_id: str, grace: float) -> tuple[Key, str]:
        """A new key for the same; the old one counts `grace` seconds more. Raises NoSuchKeyError, BadKeyError."""
        old, now = await self._find(key_id), self.now()
        if not old.holds(now) or old.certificate:
            raise BadKeyError(f"{key_id} is no API key that counts: make a new one")
        identifier, digest, shown = make_secret()
        lasting = now + (old.expires - old.created) if old.expires else 0.0
        new = replace(old, id=identifier, digest=digest, created=now, expires=lasting)
        await self.store.put(new)
        await self.store.put(replace(old, expires=min(old.expires or now + grace, now + grace)))
        return new, shown

    async def _find(self, key_id: str) -> Key:
        for key in await self.store.all():
            if key.id == key_id:
                return key
        raise NoSuchKeyError(f"there is no key {key_id!r}")
