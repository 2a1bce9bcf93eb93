"""The keys that a router knows, in memory: asked at every request, filled from the stores every now and then.

While a store does not answer, what was read from it before goes on to count: requests need no Redis to be known.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import lru_cache

import structlog
from cryptography import x509
from cryptography.x509.oid import NameOID

from shoal.router.access.key import Key, matches, read_key
from shoal.router.access.key_store import KeysAwayError, KeyStore

_log = structlog.get_logger(__name__)


class Keyring:
    """Belongs to one event loop."""

    def __init__(self, stores: Sequence[KeyStore]) -> None:
        self._stores = stores
        self._read: dict[int, Sequence[Key]] = {}
        self._by_id: dict[str, Key] = {}
        self._by_certificate: dict[str, Key] = {}
        self._away: set[int] = set()

    @property
    def complete(self) -> bool:
        """Whether every store was read at least once."""
        return len(self._read) == len(self._stores)

    def get(self, key_id: str) -> Key | None:
        """The key of that id, whether it still counts or not."""
        return self._by_id.get(key_id)

    def of_secret(self, shown: str) -> Key | None:
        """The key that was shown, None when there is none such."""
        parts = read_key(shown)
        if parts is None:
            return None
        key = self._by_id.get(parts[0])
        return key if matches(key, parts[1]) else None

    def of_certificate(self, der: bytes) -> Key | None:
        """The record of a certificate that TLS has verified, None when there is none."""
        return next((self._by_certificate[n] for n in names_of(der) if n in self._by_certificate), None)

    async def refresh(self) -> bool:
        """Look for changes; returns whether there were any. A store that is away is logged once and asked again."""
        changed = False
        for index, store in enumerate(self._stores):
            try:
                keys = await store.changed()
            except KeysAwayError as error:
                if index not in self._away:
                    _log.warning("keys_away", problem=str(error), known=len(self._read.get(index, ())))
                self._away.add(index)
                continue
            self._away.discard(index)
            if keys is not None:
                self._read[index], changed = keys, True
        if changed:
            known = [key for keys in self._read.values() for key in keys]
            # Of several records of one, the last counts: what was revoked anywhere is revoked, and a certificate that
            # was registered again after that counts again.
            self._by_id = {key.id: key for key in sorted(known, key=lambda key: bool(key.revoked))}
            registered = sorted(self._by_id.values(), key=lambda key: (not key.revoked, key.created))
            self._by_certificate = {key.certificate: key for key in registered if key.certificate}
        return changed


def names_of(der: bytes) -> list[str]:
    """What a certificate may be known by, the most certain first; empty when it cannot be read."""
    return list(_read(der)[0])


def ends_of(der: bytes) -> float:
    """When a certificate stops counting, unix time; 0 when it cannot be read. TLS looks when a connection is made."""
    return _read(der)[1]


@lru_cache(maxsize=1024)
def _read(der: bytes) -> tuple[tuple[str, ...], float]:
    try:
        certificate = x509.load_der_x509_certificate(der)
        names = [f"sha256:{hashlib.sha256(der).hexdigest()}"]
        try:
            alternatives = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
            names += [f"uri:{n}" for n in alternatives.get_values_for_type(x509.UniformResourceIdentifier)]
            names += [f"dns:{n}" for n in alternatives.get_values_for_type(x509.DNSName)]
        except x509.ExtensionNotFound:
            pass
        subjects = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
        names += [f"cn:{n.value}" for n in subjects if isinstance(n.value, str)]
    except ValueError:
        return (), 0.0
    return tuple(names), certificate.not_valid_after_utc.timestamp()
