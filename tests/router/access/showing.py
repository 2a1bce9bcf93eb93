"""Credentials of every kind, good and bad."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import ec
from jwt.algorithms import ECAlgorithm

from shoal.router.access.caller import ROLES, Role
from shoal.router.access.config import AccessConfig
from shoal.router.access.key import Key, make_secret

FORGED: dict[str, dict[str, Any]] = {
    "alg None": {"alg": "None"},
    "alg list": {"alg": ["ES256"]},
    "no alg": {},
    "key in the header": {"alg": "ES256", "kid": "two", "own_key": True},
    "key from a URL": {"alg": "ES256", "kid": "two", "jku": "https://evil.test/jwks.json"},
    "kid as a path": {"alg": "ES256", "kid": "../../../../dev/null"},
    "kid as a query": {"alg": "ES256", "kid": "one' OR '1'='1"},
    "kid as a number": {"alg": "ES256", "kid": 1},
    "no kid": {"alg": "ES256"},
    "another algorithm": {"alg": "ES384", "kid": "one"},
    "RSA with that key": {"alg": "RS256", "kid": "one"},
    "another's signature": {"alg": "ES256", "kid": "one"},
    "critical": {"alg": "ES256", "kid": "one", "crit": ["b64"], "b64": False},
}
"""Headers of tokens that somebody else signed."""
WRONG: dict[str, dict[str, Any]] = {
    "expiry in words": {"exp": "tomorrow"},
    "expiry without end": {"exp": float("inf")},
    "expiry beyond numbers": {"exp": 10**400},
    "no number": {"exp": float("nan")},
    "audience list": {"aud": ["another", "third"]},
    "no audience": {"aud": None},
    "no subject": {"sub": None},
    "subject object": {"sub": {"a": 1}},
    "tenant list": {"tenant": ["acme"]},
    "tenant object": {"tenant": {"acme": 1}},
    "empty tenant": {"tenant": ""},
    "tenant with NUL": {"tenant": "acme\0"},
    "issued in the future": {"iat": 2**40},
}
"""Claims of tokens that the provider signed."""
ISSUER, AUDIENCE = "https://issuer.test", "shoal"


def make_key(tenant: str, role: Role, **more: Any) -> tuple[Key, str]:
    """A key, and what its owner shows."""
    identifier, digest, shown = make_secret()
    return Key(identifier, tenant, role, digest, **more), shown


def write_keys(path: Path, *keys: Key) -> None:
    """The file that a router reads."""
    path.write_text('{"keys": [' + ", ".join(key.to_json() for key in keys) + "]}")


class Provider:
    """An identity provider with one key, in a file."""

    def __init__(self, folder: Path) -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        public = json.loads(ECAlgorithm.to_jwk(self._key.public_key())) | {"kid": "one", "alg": "ES256", "use": "sig"}
        folder.mkdir(exist_ok=True)
        self.file = folder / "jwks.json"
        self.file.write_text(json.dumps({"keys": [public]}))

    @property
    def config(self) -> dict[str, Any]:
        """Settings of a router that believes it."""
        return {"jwks": str(self.file), "issuer": ISSUER, "audience": AUDIENCE}

    def token(
        self, role: str | list[str] = "user", tenant: str | None = "acme", *, kid: str = "one", **claims: Any
    ) -> str:
        """Signed; claims that are None are left out."""
        now = int(time.time())
        usual = {"iss": ISSUER, "aud": AUDIENCE, "sub": "someone", "exp": now + 600, "tenant": tenant, "role": role}
        told = {name: value for name, value in (usual | claims).items() if value is not None}
        return jwt.encode(told, self._key, algorithm="ES256", headers={"kid": kid})

    def forged(self, claims: dict[str, Any], *, own_key: bool = False, **header: Any) -> str:
        """The same claims with a header of one's own, signed by somebody else."""
        key = ec.generate_private_key(ec.SECP256R1())
        if own_key:
            header["jwk"] = json.loads(ECAlgorithm.to_jwk(key.public_key()))
        body = f"{_part({'typ': 'JWT', **header})}.{_part(claims)}"
        signature = ECAlgorithm(ECAlgorithm.SHA256).sign(body.encode(), key)
        return f"{body}.{base64.urlsafe_b64encode(signature).decode().rstrip('=')}"


class Ring:
    """A key for each role, keys that do not count, and a provider; all in a folder."""

    def __init__(self, folder: Path, tenant: str = "acme") -> None:
        self.provider = Provider(folder)
        self.file = folder / "keys.json"
        self.shown: dict[str, str] = {}
        self.keys: dict[str, Key] = {}
        for role in ROLES:
            self.keys[role], self.shown[role] = make_key(tenant, role)
        self.keys["expired"], self.shown["expired"] = make_key(tenant, "admin", expires=1.0)
        self.keys["revoked"], self.shown["revoked"] = make_key(tenant, "admin", revoked=1.0)
        self.write()

    def write(self) -> None:
        """Write the file again."""
        write_keys(self.file, *self.keys.values())

    def revoke(self, name: str) -> None:
        """From now on it does not count."""
        self.keys[name] = replace(self.keys[name], revoked=time.time())
        self.write()

    def config(self, **more: Any) -> AccessConfig:
        """Settings of a router that knows all this."""
        given = {"required": True, "keys_file": str(self.file), "refresh": 0.05, **self.provider.config, **more}
        return AccessConfig(**given)

    def bad(self) -> dict[str, str]:
        """Authorizations that must not be believed."""
        now = int(time.time())
        provider = self.provider
        claims = {"iss": ISSUER, "aud": AUDIENCE, "sub": "x", "exp": now + 600, "tenant": "acme", "role": "admin"}
        unsigned = jwt.encode(claims, "", algorithm="none")
        body = f"{_part({'alg': 'HS256', 'kid': 'one'})}.{_part(claims)}"  # signed with what is public, as if shared
        mac = hmac.new(self.provider.file.read_bytes(), body.encode(), hashlib.sha256).digest()
        confused = f"{body}.{base64.urlsafe_b64encode(mac).decode().rstrip('=')}"
        right = self.shown["admin"]
        return {
            "nothing": "",
            "another scheme": "Basic YTpi",
            "no credential": "Bearer ",
            "noise": "Bearer noise",
            "unknown key": f"Bearer {make_secret()[2]}",
            "wrong secret": f"Bearer {right[:-1]}{'A' if right[-1] != 'A' else 'B'}",
            "expired key": f"Bearer {self.shown['expired']}",
            "revoked key": f"Bearer {self.shown['revoked']}",
            "expired token": f"Bearer {provider.token('admin', exp=now - 600)}",
            "not yet valid": f"Bearer {provider.token('admin', nbf=now + 600)}",
            "no expiry": f"Bearer {provider.token('admin', exp=None)}",
            "wrong audience": f"Bearer {provider.token('admin', aud='another')}",
            "wrong issuer": f"Bearer {provider.token('admin', iss='https://evil.test')}",
            "alg none": f"Bearer {unsigned}",
            "alg confusion": f"Bearer {confused}",
            "unknown signer": f"Bearer {provider.token('admin', kid='two')}",
            "damaged": f"Bearer {provider.token('admin')[:-3]}abc",
            "no tenant": f"Bearer {provider.token('admin', tenant=None)}",
            "no role": f"Bearer {provider.token('king')}",
            "two roles": f"Bearer {provider.token(['user', 'admin'])}",
            "long": "Bearer a.b." + "c" * 6_000,
            "several": f"Bearer {right}, Bearer {self.shown['user']}",
            **{name: f"Bearer {provider.forged(claims, **header)}" for name, header in FORGED.items()},
            **{name: f"Bearer {provider.token('admin', **claim)}" for name, claim in WRONG.items()},
        }


def _part(value: dict[str, Any]) -> str:
    """A part of a token."""
    return base64.urlsafe_b64encode(json.dumps(value).encode()).decode().rstrip("=")
