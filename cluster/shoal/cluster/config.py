"""The whole configuration: one TOML file, the environment, flags; each folder's own dataclass, composed here.

    [cluster]    ClusterConfig, below
    [autoscale]  shoal.cluster.autoscale.AutoscalePolicy
    [worker]     shoal.workers.config.WorkerConfig: every worker starts from it
    [router]     shoal.router.config.RouterConfig
    [tls], [access], …   what a router is composed of besides (shoal.router.config.PARTS)

What the cluster itself decides per process (a worker's name, a router's Redis) cannot be set.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any

from shoal.cluster import layers
from shoal.cluster.autoscale import AutoscalePolicy
from shoal.cluster.errors import ConfigError
from shoal.cluster.layers import Layers
from shoal.router.config import PARTS, RouterConfig
from shoal.router.store import connect as redis_connect
from shoal.workers.config import WorkerConfig


def default_state_dir() -> str:
    """Where a cluster keeps its data when nothing else is said: ${XDG_STATE_HOME:-~/.local/state}/shoal."""
    base = os.environ.get("XDG_STATE_HOME") or str(Path.home() / ".local" / "state")
    return str(Path(base) / "shoal")


@dataclass(frozen=True, slots=True)
class ClusterConfig:
    """Settings of the cluster as a whole. A wrong value raises ConfigError naming its key. Times are seconds."""

    model: str = ""
    """Checkpoint directory; every node must see it under this path."""
    ep_size: int = 1
    """Workers per copy of the model: the experts are spread over them."""
    groups: int = 1
    """Copies of the model."""
    spares: int = 0
    """Workers kept prepared per group, to take a dead one's place at once."""
    heartbeat_timeout: float = 3.0
    """A worker that is silent for so long is killed and replaced."""
    expert_copies: int = 0
    """Slots per worker and layer for spare copies of experts that have much to do; `shoal rebalance` fills them."""
    rebalance_period: float = 0.0
    """Move experts by their load this often, where it gains enough; 0: only when asked."""
    admin_port: int = 0
    """Where the controller listens, on its node; 0 takes a free one."""
    chaos: bool = False
    """Allow `shoal chaos` to break things on purpose."""
    drain_timeout: float = 30.0
    """How long a worker that leaves may finish what it has; what is left then moves elsewhere."""
    ray_address: str = ""
    """An existing Ray cluster, `host:port` or "auto"; empty: start one here and stop it at the end."""
    namespace: str = "shoal"
    """Ray namespace; two clusters on one Ray need two."""
    insecure: bool = False
    """Allow workers on several machines to be reached in the clear."""
    redis_url: str = ""
    """An existing Redis; empty: start one here, its data in `state_dir`."""
    state_dir: str = field(default_factory=default_state_dir)
    """Data of the embedded Redis and what `shoal status` and `shoal stop` read."""
    start_timeout: float = 600.0
    """Longest time from the first process to the first request served."""
    stop_grace: float = 10.0
    """How long running requests may go on when the cluster is stopped."""
    log_level: str = "info"
    """debug, info, warning or error."""
    log_format: str = "auto"
    """"console" for people, "json" for machines, "auto": console on a terminal."""

    def __post_init__(self) -> None:
        self._require("ep_size", 1 <= self.ep_size <= 256, "1 to 256")
        self._require("groups", 1 <= self.groups <= 64, "1 to 64")
        self._require("spares", 0 <= self.spares <= 64, "0 to 64")
        self._require("expert_copies", 0 <= self.expert_copies <= 128, "0 to 128")
        self._require("rebalance_period", self.rebalance_period >= 0, "0 or more")
        self._require("admin_port", 0 <= self.admin_port <= 65535, "0 to 65535")
        self._require("heartbeat_timeout", self.heartbeat_timeout >= 0.5, "0.5 or more")
        self._require("drain_timeout", self.drain_timeout >= 0, "0 or more")
        self._require("start_timeout", self.start_timeout > 0, "above 0")
        self._require("stop_grace", self.stop_grace >= 0, "0 or more")
        self._require("namespace", self.namespace != "", "a name")
        self._require("state_dir", self.state_dir != "", "a directory")
        client = self.ray_address.startswith("ray://")
        self._require("ray_address", not client, '"auto" or host:port (Ray Client, ray://, is not supported)')
        if self.redis_url:
            try:
                redis_connect.check(self.redis_url)
            except redis_connect.RedisUrlError as error:  # it shows no value, which may hold a password
                raise ConfigError(f"cluster.redis_url must be a URL that can be used: {error}") from error
        levels, formats = ("debug", "info", "warning", "error"), ("auto", "console", "json")
        self._require("log_level", self.log_level in levels, f"one of {', '.join(levels)}")
        self._require("log_format", self.log_format in formats, f"one of {', '.join(formats)}")

    def _require(self, key: str, holds: bool, expected: str) -> None:
        if not holds:
            raise ConfigError(f"cluster.{key} must be {expected}, not {getattr(self, key)!r}")

    @property
    def ranks(self) -> int:
        """Workers in all."""
        return (self.ep_size + self.spares) * self.groups

    @property
    def group_names(self) -> tuple[str, ...]:
        """Names of the groups, g0, g1, …"""
        return tuple(f"g{number}" for number in range(self.groups))


SECTIONS: dict[str, type] = {
    "cluster": ClusterConfig,
    "autoscale": AutoscalePolicy,
    "worker": WorkerConfig,
    "router": RouterConfig,
    **PARTS,
}

_FAMILIAR = {"MODEL_PATH": ("cluster", "model"), "MAX_CONCURRENT_REQUESTS": ("router", "max_running")}
"""Variables of other servers, and what they are here."""

_QUANTIZATIONS = {"mxfp4": "false", "mxfp4-int8": "true"}
"""What QUANTIZATION may say -> worker.int8_activations. The weights are always the checkpoint's own."""

DECIDED = {
    **{("router", part): f"[{part}] is a section" for part in PARTS},
    ("worker", "tls"): "[tls] is a section",
    ("worker", "model"): "cluster.model is the setting",
    ("worker", "chaos"): "cluster.chaos is the setting",
    ("worker", "log_level"): "cluster.log_level is the setting",
    ("worker", "worker_id"): "each worker gets its own",
    ("worker", "group"): "each worker gets its own",
    ("worker", "host"): "each worker listens where its router can reach it",
    ("worker", "port"): "each worker takes a free one",
}
"""Keys of a section that are not for people, and why."""


@dataclass(frozen=True, slots=True)
class Settings:
    """What was said by file, environment and flags, checked for unknown keys; sections are made on demand.

    A router alone needs no `cluster.model`, a client needs nothing: each command takes the sections it needs.
    """

    layers: Layers

    def cluster(self) -> ClusterConfig:
        """The [cluster] section. Raises ConfigError."""
        return layers.build(ClusterConfig, "cluster", self.layers)

    def worker(self, model: str) -> WorkerConfig:
        """The [worker] section, from which each worker's own settings are made. Raises ConfigError."""
        return layers.build(WorkerConfig, "worker", self.layers, model=model, tls=self.part("tls"))

    def autoscale(self) -> AutoscalePolicy:
        """The [autoscale] section. Raises ConfigError."""
        return layers.build(AutoscalePolicy, "autoscale", self.layers)

    def router(self, **fixed: Any) -> RouterConfig:
        """The [router] section; `fixed` settings are ours and win. Raises ConfigError."""
        parts = {part: self.part(part) for part in PARTS}
        return layers.build(RouterConfig, "router", self.layers, **{**parts, **fixed})

    def part(self, section: str) -> Any:
        """A section that others are composed of, such as [tls]. Raises ConfigError."""
        return layers.build(PARTS[section], section, self.layers)

    def given(self, dotted: str) -> bool:
        """Whether somebody set `section.key`."""
        section, _, key = dotted.partition(".")
        return (section, key) in self.layers


def load(
    file: Path | None = None,
    environment: Mapping[str, str] | None = None,
    flags: Mapping[str, Any] | None = None,
    assignments: Iterable[str] = (),
) -> Settings:
    """Lay file, environment and flags over each other. Raises ConfigError for an unreadable file or an unknown key.

    `file` defaults to what SHOAL_CONFIG names; `flags` maps `section.key` to a value, None where not given.
    """
    environment = os.environ if environment is None else environment
    if file is None and environment.get("SHOAL_CONFIG"):
        file = Path(environment["SHOAL_CONFIG"])
    merged: Layers = layers.from_file(file, SECTIONS) if file is not None else {}
    merged |= familiar(environment)
    merged |= layers.from_environment(environment, SECTIONS)
    merged |= layers.from_assignments(assignments, SECTIONS)
    merged |= layers.from_flags(flags or {}, SECTIONS)
    for (section, key), given in merged.items():
        if reason := DECIDED.get((section, key)):
            raise ConfigError(f"{section}.{key} cannot be set: {reason} (from {given.source})")
    return Settings(merged)


def familiar(environment: Mapping[str, str]) -> Layers:
    """Settings under the names that people know from other servers; ours, SHOAL_…, win over them.

    QUANTIZATION is `mxfp4`, as checkpoints are published, or `mxfp4-int8`, with activations of 8 bits where they meet
    the experts (CPU only). Raises ConfigError for another one.

    >>> {key: given.value for key, given in familiar({"MAX_CONCURRENT_REQUESTS": "64"}).items()}
    {('router', 'max_running'): '64'}
    """
    made = {
        key: layers.Given(environment[name], name, text=True)
        for name, key in _FAMILIAR.items()
        if environment.get(name)
    }
    if quantization := environment.get("QUANTIZATION", ""):
        if quantization.lower() not in _QUANTIZATIONS:
            known = " or ".join(_QUANTIZATIONS)
            raise ConfigError(f"QUANTIZATION is {quantization!r}, not {known}: experts are served as published")
        int8 = _QUANTIZATIONS[quantization.lower()]
        made["worker", "int8_activations"] = layers.Given(int8, "QUANTIZATION", text=True)
    return made


def as_environment(section: str, config: Any) -> dict[str, str]:
    """Variables that make a child process build exactly `config`; secrets in it stay off its command line."""
    variables: dict[str, str] = {}
    for f in fields(config):
        value = getattr(config, f.name)
        if is_dataclass(value):
            variables |= as_environment(f.name, value)
        else:
            variables[f"SHOAL_{section.upper()}__{f.name.upper()}"] = layers.as_text(value)
    return variables
