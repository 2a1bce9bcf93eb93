"""`shoal controller`: start the controller on a Ray cluster that exists, and leave it there.

Safe to run again: a controller that is there already is left alone, so a start hook may run at every start of a head.
"""

from __future__ import annotations

import dataclasses
import os
import time
import tomllib
from pathlib import Path
from typing import Any

import structlog

from shoal.cluster import launch, logs, ray_session
from shoal.cluster.config import ClusterConfig, Settings
from shoal.cluster.errors import ConfigError, StartError
from shoal.workers.config import WorkerConfig

log = structlog.get_logger()

_RETRY = 2.0  # seconds between two tries to reach Ray or Redis


def run(settings: Settings, desired: Path | None) -> None:
    """Until the controller runs, or `cluster.start_timeout` is over. Raises ConfigError, StartError."""
    config = settings.cluster()
    logs.configure(config.log_level, config.log_format)
    if not config.model:
        raise ConfigError("cluster.model is missing: name a checkpoint directory")
    if not config.redis_url:
        raise ConfigError("cluster.redis_url is missing: routers find the workers through it")
    if desired is not None:
        config = dataclasses.replace(config, **wanted(desired))
    worker = settings.worker(model=str(Path(config.model).absolute()))
    give_up = time.monotonic() + config.start_timeout
    while True:
        try:
            _start(config, worker, max(1.0, give_up - time.monotonic()))
            return
        except StartError as error:
            if time.monotonic() + _RETRY > give_up:
                raise
            log.warning("the controller cannot start yet", why=str(error))
            time.sleep(_RETRY)


def wanted(path: Path) -> dict[str, Any]:
    """What a file of the desired state says: `ep_size` and `groups`, TOML. Raises ConfigError."""
    try:
        document: dict[str, Any] = tomllib.loads(path.read_text())
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from error
    for key, value in document.items():
        if key not in ("ep_size", "groups") or type(value) is not int:
            raise ConfigError(f"{path}: {key} must be one of ep_size and groups, an integer, not {value!r}")
    return document


def _start(config: ClusterConfig, worker: WorkerConfig, timeout: float) -> None:
    from shoal.cluster.controller_handle import ControllerHandle

    session = ray_session.connect(config.ray_address or "auto", config.namespace, Path(config.state_dir))
    try:
        if ControllerHandle.exists():
            log.info("a controller runs here already", namespace=config.namespace)
            return
        declared = launch.declare(config, worker, session, config.redis_url, timeout)
        ControllerHandle(declared, session.node_id).begin(timeout)
        log.info("the controller runs", pid=os.getpid(), ep_size=config.ep_size, groups=config.groups)
    finally:
        ray_session.disconnect()
