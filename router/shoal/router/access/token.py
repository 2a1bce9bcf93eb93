"""Tokens of an identity provider (JWT, as OIDC gives them): who is it from, for whom, until when, of which tenant."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any

import jwt

from shoal.router.access.caller import ROLES, Caller, Role
from shoal.router.access.config import AccessConfig
from shoal.router.access.jwks import Jwks
from shoal.router.errors import CredentialError

_MOST_CHARACTERS = 8_192  # gRPC carries no longer header by default
_MOST_REMEMBERED = 4_096
TOKEN_PREFIX = "jwt-"  # noqa: S105  # a public name
"""How the public names of tokens begin; ids of keys have no dash."""


class Tokens:
    """Checks tokens. What was checked is remembered until it expires or the provider's keys change: a
    quarter of a millisecond of arithmetic each."""

    def __init__(self, config: AccessConfig, jwks: Jwks, now: Callable[[], float]) -> None:
        """`now` is unix time."""
        self._config, self._jwks, self._now = config, jwks, now
        self._checked: OrderedDict[bytes, Caller] = OrderedDict()
        self._version = jwks.version

    async def caller(self, token: str) -> Caller:
        """Who shows it. Raises CredentialError, and CredentialsAwayError while the provider's keys cannot be read."""
        if len(token) > _MOST_CHARACTERS:
            raise CredentialError(f"a token has at most {_MOST_CHARACTERS} characters")
        await self._jwks.refresh()
        if self._jwks.version != self._version:  # a key may have been taken back
            self._checked.clear()
            self._version = self._jwks.version
        name = hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()
        known = self._checked.get(name)
        if known is not None and self._now() < known.expires:
            self._checked.move_to_end(name)
            return known
        claims = await self._verified(token)
        caller = self._caller(claims)
        self._checked[name] = caller
        if len(self._checked) > _MOST_REMEMBERED:
            self._checked.popitem(last=False)
        return caller

    async def _verified(self, token: str) -> Mapping[str, Any]:
        config = self._config
        try:
            header = jwt.get_unverified_header(token)
            if header.get("alg") not in config.algorithms:  # before any key is looked for; `none` is never among them
                raise CredentialError("the token's signature is not of a kind that is believed here")
            key = await self._jwks.key(str(header.get("kid", "")))
            if key is None or key.public_key_use not in (None, "sig"):
                raise CredentialError("the token is signed with a key that is not known here")
            claims: dict[str, Any] = jwt.decode(
                token,
                key.key,
                algorithms=[str(header["alg"])],
                audience=config.audience,
                issuer=config.issuer,
                leeway=config.leeway,
                options={"require": ["exp", "iss", "aud", "sub"]},
            )
            float(claims["exp"])  # a whole number may be too large for one
        except jwt.ExpiredSignatureError:
            raise CredentialError("the token has expired") from None
        except jwt.InvalidAudienceError:
            raise CredentialError("the token is for somebody else: its audience is another") from None
        except jwt.InvalidIssuerError:
            raise CredentialError("the token is from somebody who is not believed here") from None
        except (jwt.PyJWTError, ValueError, TypeError, ArithmeticError):
            raise CredentialError("the token is not valid") from None
        return claims

    def _caller(self, claims: Mapping[str, Any]) -> Caller:
        tenant, role = _at(claims, self._config.tenant_claim), _role(_at(claims, self._config.role_claim))
        if not isinstance(tenant, str) or not 1 <= len(tenant) <= 128 or not tenant.isprintable():
            raise CredentialError(f"the token names no tenant as {self._config.tenant_claim!r}")
        if role is None:
            raise CredentialError(f"the token names no single role as {self._config.role_claim!r}")
        subject = str(claims["sub"])[:256]
        digest = hashlib.sha256(f"{self._config.issuer}\0{subject}".encode()).hexdigest()
        expires = float(claims["exp"]) + self._config.leeway
        return Caller(tenant, role, key_id=f"{TOKEN_PREFIX}{digest[:16]}", subject=subject, expires=expires)


def _at(claims: Mapping[str, Any], path: str) -> Any:
    """A claim by its path, as `realm_access.roles`; one that has dots in its name is found by the whole."""
    if path in claims:
        return claims[path]
    value: Any = claims
    for part in path.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def _role(claim: Any) -> Role | None:
    """The one role that is named; None for none, and for several: which was meant cannot be known."""
    words = [claim] if isinstance(claim, str) else claim if isinstance(claim, list) else []
    named = [role for role in ROLES if role in words]
    return named[0] if len(named) == 1 else None
