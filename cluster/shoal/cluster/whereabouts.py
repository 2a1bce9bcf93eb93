"""Where the cluster is that a command is about: one that was named, one that `shoal serve` runs here, or, in a
container, what its own settings say."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from pathlib import Path

from shoal.cluster import runfile
from shoal.cluster.config import Settings
from shoal.cluster.errors import NotRunningError
from shoal.wire.credentials import join_address


@dataclass(frozen=True, slots=True)
class Whereabouts:
    """A router, and what else is known."""

    router: str
    """`host:port` of its gRPC server."""
    redis_url: str
    """Empty where nobody said."""
    metrics: str = ""
    """`host:port` of its /metrics, empty where nobody said."""
    pid: int | None = None
    """The process of `shoal serve`, where that runs it."""


def find(settings: Settings, address: str | None) -> Whereabouts:
    """Raises NotRunningError where nothing runs from the state directory and no setting says where a router listens."""
    config = settings.cluster()
    if address is not None:
        return Whereabouts(address, config.redis_url)
    try:
        running = runfile.read(Path(config.state_dir))
    except NotRunningError:
        if not settings.given("router.port"):
            raise
        router = settings.router(model_dir="unused")
        metrics = join_address(_reached(router.metrics_host), router.metrics_port) if router.metrics_port > 0 else ""
        return Whereabouts(join_address(_reached(router.host), router.port), config.redis_url, metrics)
    return Whereabouts(running.router, running.redis_url, running.metrics, running.pid)


def _reached(host: str) -> str:
    """Where one that listens there is reached from this machine.

    >>> _reached("0.0.0.0"), _reached("10.0.0.7")
    ('127.0.0.1', '10.0.0.7')
    """
    try:
        return "127.0.0.1" if ipaddress.ip_address(host).is_unspecified else host
    except ValueError:
        return host
