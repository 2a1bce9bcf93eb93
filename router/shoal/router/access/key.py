"""What is kept of a credential: never the secret itself.

An API key is `shk_<id>_<secret>`: the id is public and names the key everywhere, the secret is 256 random bits. Being
random it needs no slow hash: SHA-256 of it cannot be searched.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import re
import secrets
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from shoal.router.access.caller import ROLES, Caller, Role

_KEY = re.compile(r"shk_([a-z2-7]{12})_([A-Za-z0-9_-]{43})")
_LETTERS = "abcdefghijklmnopqrstuvwxyz234567"
_TENANT = re.compile(r"[\w.\-@:/ ]{1,128}")


class BadKeyError(ValueError):
    """A key's record is not one; the message says why."""


@dataclass(frozen=True, slots=True)
class Key:
    """One API key, or one client certificate that is known. Times are unix seconds; 0: never."""

    id: str
    tenant: str
    role: Role
    digest: str = ""
    """SHA-256 of the secret, hex; empty for a certificate."""
    certificate: str = ""
    """`uri:…`, `dns:…` or `cn:…` of the certificate, or `sha256:` and the fingerprint of it, hex."""
    name: str = ""
    """What it is for, in words."""
    created: float = 0.0
    expires: float = 0.0
    revoked: float = 0.0
    requests_per_minute: int = 0
    """Besides the tenant's own limit; 0: none."""
    tokens_per_minute: int = 0
    """The same for tokens, input and output together."""
    concurrent: int = 0
    """The same for requests at once."""
    max_context: int = 0
    """Most tokens of one of its prompts, if the tenant may have more; 0: as many as the tenant."""

    def __post_init__(self) -> None:
        if self.role not in ROLES:
            raise BadKeyError(f"a role is one of {', '.join(ROLES)}, not {self.role!r}")
        if _TENANT.fullmatch(self.tenant) is None:
            raise BadKeyError("a tenant has 1 to 128 letters, digits, blanks and any of . - _ @ : /")
        if bool(self.digest) == bool(self.certificate):
            raise BadKeyError("a key has either a digest or a certificate")
        if self.certificate and self.certificate.partition(":")[0] not in ("uri", "dns", "cn", "sha256"):
            raise BadKeyError("a certificate is named by uri:, dns:, cn: or sha256:")
        if len(self.name) > 256 or not self.name.isprintable():
            raise BadKeyError("a name has at most 256 printable characters")

    def holds(self, now: float) -> bool:
        """Whether it still counts."""
        return not self.revoked and not (self.expires and now >= self.expires)

    @property
    def caller(self) -> Caller:
        """Who shows it."""
        return Caller(self.tenant, self.role, self.id, self.name)

    def to_json(self) -> str:
        """One line."""
        return json.dumps({k: v for k, v in asdict(self).items() if v}, sort_keys=True, ensure_ascii=False)

    @classmethod
    def from_json(cls, value: str | bytes | Mapping[str, Any]) -> Key:
        """Raises BadKeyError when it is no record."""
        try:
            given = value if isinstance(value, Mapping) else json.loads(value)
            kinds = {f.name: str(f.type) for f in fields(cls)}
            for name, item in given.items():
                number = kinds[name] in ("float", "int")
                if isinstance(item, bool) or not isinstance(item, (int, float) if number else str):
                    raise BadKeyError(f"{name} has the wrong type")
            return cls(**given)
        except BadKeyError:
            raise
        except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
            raise BadKeyError(f"this is no record of a key: {type(error).__name__}: {error}") from None


def digest_of(secret: str) -> str:
    """What is kept of a secret."""
    return hashlib.sha256(b"shoal api key\0" + secret.encode()).hexdigest()


def make_secret() -> tuple[str, str, str]:
    """A new key's id, what is kept of it, and the key as its owner shows it: never to be had again."""
    identifier = "".join(secrets.choice(_LETTERS) for _ in range(12))
    secret = secrets.token_urlsafe(32)
    return identifier, digest_of(secret), f"shk_{identifier}_{secret}"


def read_key(shown: str) -> tuple[str, str] | None:
    """Id and secret of a key as it was shown; None when it is none.

    >>> read_key("shk_abc"), read_key("shk_aaaaaaaaaaaa_" + "b" * 43)[0]
    (None, 'aaaaaaaaaaaa')
    """
    match = _KEY.fullmatch(shown)
    return None if match is None else (match[1], match[2])


def matches(key: Key | None, secret: str) -> bool:
    """Whether the secret is this key's, in a time that tells nothing, also not whether there is such a key."""
    kept = key.digest if key is not None and key.digest else digest_of("")
    return hmac.compare_digest(kept, digest_of(secret)) and key is not None and bool(key.digest)
