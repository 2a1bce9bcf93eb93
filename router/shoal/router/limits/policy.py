"""What is agreed with each tenant."""

from __future__ import annotations

import asyncio
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal, get_args

import structlog

from shoal.router.limits.config import LimitsConfig
from shoal.router.safeguards.detect import KINDS

Priority = Literal["high", "normal", "batch"]
Recorded = Literal["hash", "store", "encrypt"]

_FACTORS: dict[str, float] = {"high": 4.0, "normal": 1.0, "batch": 0.25}

_LOOK_SECONDS = 5.0

_log = structlog.get_logger(__name__)


class PolicyError(ValueError):
    """A policy is not one; the message names tenant and key."""


@dataclass(frozen=True, slots=True)
class Policy:
    """One tenant's. 0 means no limit."""

    requests_per_minute: int = 0
    tokens_per_minute: int = 0
    concurrent: int = 0
    max_context: int = 0
    priority: Priority = "normal"
    """How much of a full router it gets: high four times as much as normal, batch a quarter."""
    weight: float = 1.0
    """The same within its priority."""
    response_cache: bool = False
    """Whether answers that cannot differ may come from the cache. Without effect beside `redact`: nothing of an answer
    is kept there that was not redacted."""
    audit: Recorded = "hash"
    """How prompts and answers are in the audit trail: hashed, stored, or encrypted with audit.encryption_key."""
    redact: tuple[str, ...] = ()
    """Kinds of personal data taken out of prompts and answers; see the guide to safeguards."""
    deny: tuple[str, ...] = ()
    """Words and phrases that no prompt and no answer may have."""
    moderate: bool = False
    """Whether prompts and answers are shown to the moderation service."""

    @property
    def share(self) -> float:
        """Its weight in the queue."""
        return self.weight * _FACTORS[self.priority]


_KINDS: dict[str, tuple[type, ...]] = {
    "int": (int,), "float": (int, float), "bool": (bool,), "Priority": (str,), "Recorded": (str,),
    "tuple[str, ...]": (list,),
}  # fmt: skip
_WORDS = {"Priority": get_args(Priority), "Recorded": get_args(Recorded)}


def read_policies(document: Mapping[str, Any], usual: Policy) -> dict[str, Policy]:
    """Policies by tenant from parsed TOML; what a table leaves out is as `usual`. Raises PolicyError."""
    kinds = {f.name: str(f.type) for f in fields(Policy)}
    policies = {}
    for tenant, table in document.items():
        if not isinstance(table, dict):
            raise PolicyError(f"{tenant} must be a table, written [{tenant!r}]")
        given: dict[str, Any] = {}
        for key, value in table.items():
            kind = kinds.get(key)
            if kind is None:
                raise PolicyError(f"{tenant}.{key} is not a setting; known are {', '.join(sorted(kinds))}")
            right = isinstance(value, _KINDS[kind]) and (kind == "bool" or not isinstance(value, bool))
            if kind == "tuple[str, ...]":
                right = right and all(isinstance(word, str) and word for word in value)
            if words := _WORDS.get(kind):
                right = value in words
            if not right or (kind in ("int", "float") and value < 0) or (key == "weight" and value <= 0):
                raise PolicyError(f"{tenant}.{key} may not be {value!r}")
            if key == "redact" and not set(value) <= KINDS:
                raise PolicyError(f"{tenant}.redact may have {', '.join(sorted(KINDS))}, not {value!r}")
            given[key] = tuple(value) if isinstance(value, list) else value
        policies[tenant] = replace(usual, **given)
    return policies


class Policies:
    """Everybody's. Read from a file, again whenever it changed; a file that became wrong changes nothing."""

    def __init__(self, config: LimitsConfig, usual: Policy | None = None, *, encrypts: bool = True) -> None:
        """`encrypts`: whether the trail can. Raises PolicyError and OSError for a file that is wrong at the start."""
        self._encrypts = encrypts
        base = usual or Policy()
        self._usual = replace(
            base,
            requests_per_minute=config.requests_per_minute,
            tokens_per_minute=config.tokens_per_minute,
            concurrent=config.concurrent,
            max_context=config.max_context,
        )
        self._path = Path(config.tenants_file) if config.tenants_file else None
        self._seen: tuple[int, int, int] | None = None
        self._policies: dict[str, Policy] = {}
        if self._path is not None:
            self._read(self._path)

    def of(self, tenant: str) -> Policy:
        """The tenant's policy."""
        return self._policies.get(tenant, self._usual)

    async def keep(self) -> None:
        """Look at the file again and again, for ever."""
        while True:
            await asyncio.sleep(_LOOK_SECONDS)
            self.refresh()

    def refresh(self) -> None:
        """Read the file again if it changed."""
        if self._path is None:
            return
        try:
            self._read(self._path)
        except (OSError, PolicyError) as error:
            _log.warning("policies_unreadable", file=str(self._path), problem=str(error))

    def _read(self, path: Path) -> None:
        stat = path.stat()
        seen = (stat.st_ino, stat.st_mtime_ns, stat.st_size)
        if seen == self._seen:
            return
        self._seen = seen  # also of a wrong file: it is told once
        try:
            document = tomllib.loads(path.read_text())
        except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise PolicyError(f"{path} is not TOML: {error}") from None
        policies = read_policies(document, self._usual)
        lacking = [] if self._encrypts else [name for name, policy in policies.items() if policy.audit == "encrypt"]
        if lacking:
            raise PolicyError(f'{lacking[0]}.audit may not be "encrypt" without audit.encryption_key_file')
        self._policies = policies
