"""What one router needs to know before it starts."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from shoal.router.access.config import AccessConfig
from shoal.router.audit.config import AuditConfig
from shoal.router.errors import StartError
from shoal.router.limits.config import LimitsConfig
from shoal.router.safeguards.config import SafeguardsConfig
from shoal.router.store.connect import RedisUrlError, check
from shoal.wire.settings import SettingError
from shoal.wire.tls import TlsConfig

PARTS: dict[str, type] = {
    "tls": TlsConfig,
    "access": AccessConfig,
    "limits": LimitsConfig,
    "audit": AuditConfig,
    "safeguards": SafeguardsConfig,
}
"""Fields of a RouterConfig that are sections of their own."""


@dataclass(frozen=True, slots=True)
class RouterConfig:
    """Settings of one router. Complete after construction; a wrong value raises StartError naming its key.

    Times are seconds unless the name says otherwise.
    """

    model_dir: str
    """Directory with the model's tokenizer.json."""
    host: str = "127.0.0.1"
    """Address that the gRPC server listens on."""
    port: int = 50051
    """0 takes a free port."""
    http_host: str = "127.0.0.1"
    """Address that the OpenAI-compatible HTTP API listens on."""
    http_port: int = 8000
    """0 takes a free port; -1 serves no HTTP."""
    http_max_body_bytes: int = 16 * 2**20
    """Larger bodies are refused."""
    insecure: bool = False
    """Allow listening off loopback in the clear."""
    metrics_host: str = "127.0.0.1"
    """Address that /metrics is served on."""
    metrics_port: int = 9464
    """0 takes a free port; -1 serves none."""
    redis_url: str = ""
    """Sessions and the cluster registry; empty: neither."""
    workers: tuple[str, ...] = ()
    """Workers (`host:port`) besides those in the registry."""
    groups: tuple[str, ...] = ()
    """Groups of the registry to serve from; empty: all."""
    registry_poll: float = 0.5
    """Time between two looks at the registry."""
    max_running: int = 256
    """Requests served at once."""
    max_waiting: int = 256
    """Requests waiting for room; more are refused."""
    max_choices: int = 16
    """Most continuations of one prompt."""
    model_name: str = ""
    """What clients call the model; empty: the name of `model_dir`."""
    well_formed: bool = True
    """Have workers keep the headers of every turn well-formed, also where no tool or format is asked for. Without it
    the parser repairs what a model gets wrong."""
    parallel_tool_calls: bool = False
    """Ask the model for more calls after a function call where a request does not say. GPT-OSS was trained to wait for
    the result of each."""
    tool_rounds: int = 16
    """Most calls of the server's tools in one turn."""
    tool_seconds: float = 120.0
    """Most time that they may take together in one turn."""
    max_unread_tokens: int = 8192
    """Tokens kept for a client that does not read, per continuation; with more it is cut off."""
    max_request_seconds: float = 3600.0
    """Longest life of a request, whatever deadline its client gave."""
    worker_wait_seconds: float = 5.0
    """How long a request waits for a first ready worker."""
    accept_seconds: float = 10.0
    """How long a worker may take to say whether it takes a request."""
    migration_losses: int = 16
    """Most workers that may be lost under one request before it fails; 0: the first loss ends it."""
    migration_seconds: float = 180.0
    """Longest time from such a loss to the next token; a Ray that starts anew takes a minute on a busy machine."""
    session_ttl_seconds: int = 86_400
    """How long an idle session is kept when the request does not say."""
    max_session_ttl_seconds: int = 30 * 86_400
    """Longest time a request may ask for."""
    max_session_bytes: int = 32 * 2**20
    """Most that the items of a session may take in Redis."""
    share_prefixes: bool = False
    """Tell the index in Redis which worker has just computed which prompt, for routers that choose workers by it."""
    cache_seconds: float = 3600.0
    """How long an answer that cannot differ is given again to a tenant whose policy says `response_cache`."""
    cache_bytes: int = 16 * 2**20
    """Most that a tenant's answers may take in Redis; the oldest go first."""
    lease_seconds: float = 15.0
    """A running request, and the session's turn that it writes, may be taken over once its router was silent for so
    long."""
    redis_wait_seconds: float = 10.0
    """How long a start waits for the Redis of `redis_url` before it fails."""
    redis_replicas: int = 0
    """Replicas of Redis that must have a turn before it counts as stored. Where sentinels promote replicas, 1 keeps
    every acknowledged turn and lets a primary that was replaced acknowledge none. Not for a Redis Cluster."""
    session_patience_seconds: float = 45.0
    """How long a finished turn waits for Redis to come back before it is given up."""
    journal_seconds: float = 900.0
    """How long a request that ended can still be read and its answer repeated; 0 keeps no journal."""
    drain_seconds: float = 30.0
    """How long running requests may go on after a shutdown began."""
    ready_file: str = ""
    """Written (JSON with the bound addresses) once the router listens; empty: none."""
    log_level: str = "info"
    """debug, info, warning or error."""
    tls: TlsConfig = field(default_factory=TlsConfig)
    """The [tls] section."""
    access: AccessConfig = field(default_factory=AccessConfig)
    """The [access] section."""
    limits: LimitsConfig = field(default_factory=LimitsConfig)
    """The [limits] section."""
    audit: AuditConfig = field(default_factory=AuditConfig)
    """The [audit] section."""
    safeguards: SafeguardsConfig = field(default_factory=SafeguardsConfig)
    """The [safeguards] section."""
    router_id: str = field(default_factory=lambda: f"router-{secrets.token_hex(4)}")
    """Unique among live routers."""

    def __post_init__(self) -> None:
        for key in (
            "http_max_body_bytes",
            "max_running",
            "max_choices",
            "max_unread_tokens",
            "session_ttl_seconds",
            "max_session_ttl_seconds",
            "max_session_bytes",
            "cache_bytes",
        ):
            self._require(key, getattr(self, key) >= 1, "at least 1")
        for key in (
            "cache_seconds",
            "lease_seconds",
            "registry_poll",
            "max_request_seconds",
            "accept_seconds",
            "tool_seconds",
        ):
            self._require(key, getattr(self, key) > 0, "above 0")
        for key in (
            "tool_rounds",
            "max_waiting",
            "worker_wait_seconds",
            "drain_seconds",
            "migration_losses",
            "session_patience_seconds",
            "redis_wait_seconds",
            "redis_replicas",
            "journal_seconds",
            "migration_seconds",
        ):
            self._require(key, getattr(self, key) >= 0, "0 or more")
        self._require("model_dir", self.model_dir != "", "a directory")
        self._require("host", self.host != "", "an address")
        self._require("http_host", self.http_host != "", "an address")
        self._require("http_port", -1 <= self.http_port <= 65535, "-1 to 65535")
        self._require("port", 0 <= self.port <= 65535, "0 to 65535")
        self._require("metrics_port", -1 <= self.metrics_port <= 65535, "-1 to 65535")
        self._require("router_id", self.router_id != "", "a name")
        levels = ("debug", "info", "warning", "error")
        self._require("log_level", self.log_level in levels, f"one of {', '.join(levels)}")
        if self.redis_url:
            try:
                check(self.redis_url)
            except RedisUrlError as error:
                raise StartError(f"router.redis_url must be a URL that can be used: {error}") from error
            clustered = "+cluster://" in self.redis_url
            self._require("redis_replicas", not (self.redis_replicas and clustered), "0 for a Redis Cluster")
        for address in self.workers:
            host, colon, port = address.rpartition(":")
            valid = bool(host) and bool(colon) and port.isdigit() and 0 < int(port) < 65536
            self._require("workers", valid, "a list of host:port")
        self._require("session_ttl_seconds", self.session_ttl_seconds <= self.max_session_ttl_seconds,
                      "at most max_session_ttl_seconds")  # fmt: skip

    @property
    def model(self) -> str:
        """What clients call the model."""
        return self.model_name or Path(self.model_dir).resolve().name

    def _require(self, key: str, holds: bool, expected: str) -> None:
        if not holds:
            shown = "<hidden>" if key == "redis_url" else repr(getattr(self, key))  # a URL may hold a password
            raise StartError(f"router.{key} must be {expected}, not {shown}")

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> RouterConfig:
        """From parsed TOML or JSON. Raises StartError naming a key that is unknown, missing or of the wrong type."""
        known = {f.name: str(f.type) for f in fields(cls)}
        if unknown := sorted(set(values) - set(known)):
            raise StartError(f"router.{unknown[0]} is not a setting; known are {', '.join(sorted(known))}")
        if "model_dir" not in values:
            raise StartError("router.model_dir is missing")
        return cls(**{
            key: _part(key, value) if key in PARTS else _checked(f"router.{key}", known[key], value)
            for key, value in values.items()
        })  # fmt: skip


def _part(section: str, values: Any) -> Any:
    """A section of its own, or StartError."""
    if not isinstance(values, Mapping):
        raise StartError(f"router.{section} must be an object")
    known = {f.name: str(f.type) for f in fields(PARTS[section])}
    if unknown := sorted(set(values) - set(known)):
        raise StartError(f"{section}.{unknown[0]} is not a setting; known are {', '.join(sorted(known))}")
    try:
        return PARTS[section](**{k: _checked(f"{section}.{k}", known[k], value) for k, value in values.items()})
    except SettingError as error:
        raise StartError(str(error)) from error


def _checked(name: str, kind: str, value: Any) -> Any:
    """`value` as the setting's type, or StartError."""
    if kind.startswith("tuple") and isinstance(value, (list, tuple)) and all(isinstance(v, str) for v in value):
        return tuple(value)
    if kind == "float" and isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    exact = {"str": str, "int": int, "bool": bool}.get(kind)
    if exact is not None and type(value) is exact:
        return value
    words = {"str": "a string", "int": "an integer", "bool": "true or false", "float": "a number"}
    raise StartError(f"{name} must be {words.get(kind, 'a list of strings')}, not {value!r}")
