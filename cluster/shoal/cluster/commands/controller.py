"""`shoal controller`: start the controller on a Ray cluster that exists, and leave it there.

Safe to run again: a controller that is there already is left alone, so a start hook may run at every start of a head.
Nobody looks at a start hook's exit status: with `keep_trying` neither it nor the controller ever gives up.
"""

from __future__ import annotations

import dataclasses
import os
import time
from pathlib import Path

import structlog

from shoal.cluster import launch, ray_session
from shoal.cluster.autoscale import AutoscalePolicy
from shoal.cluster.config import ClusterConfig, Settings
from shoal.cluster.desired_file import wanted
from shoal.cluster.errors import ConfigError, StartError
from shoal.router.audit.config import AuditConfig
from shoal.wire import logs
from shoal.workers.config import WorkerConfig

log = structlog.get_logger()

_RETRY = 2.0  # seconds between two tries to reach Ray or Redis
_AGAIN = 10.0  # seconds after which a group that failed begins anew, the first time


def run(settings: Settings, desired: Path | None, keep_trying: bool = False) -> None:
    """Until the controller runs, or `cluster.start_timeout` is over, which it never is with `keep_trying`: then a group
    that cannot start begins anew, too. Raises ConfigError, StartError."""
    config = settings.cluster()
    logs.configure(config.log_level, config.log_format)
    if not config.model:
        raise ConfigError("cluster.model is missing: name a checkpoint directory")
    if not config.redis_url:
        raise ConfigError("cluster.redis_url is missing: routers find the workers through it")
    if desired is not None:
        config = dataclasses.replace(config, **wanted(desired))
    worker, autoscale = settings.worker(model=str(Path(config.model).absolute())), settings.autoscale()
    audit: AuditConfig = settings.part("audit")
    give_up = time.monotonic() + config.start_timeout
    while True:
        try:
            left = config.start_timeout if keep_trying else max(1.0, give_up - time.monotonic())
            _start(config, worker, autoscale, audit, desired, left, again=_AGAIN if keep_trying else 0.0)
            return
        except StartError as error:
            if not keep_trying and time.monotonic() + _RETRY > give_up:
                raise
            log.warning("the controller cannot start yet", why=str(error))
            time.sleep(_RETRY)


def _start(
    config: ClusterConfig,
    worker: WorkerConfig,
    autoscale: AutoscalePolicy,
    audit: AuditConfig,
    desired: Path | None,
    timeout: float,
    again: float,
) -> None:
    from shoal.cluster.controller_handle import ControllerHandle

    session = ray_session.connect(config.ray_address or "auto", config.namespace, Path(config.state_dir))
    try:
        if ControllerHandle.exists():
            ControllerHandle.require_answer()
            log.info("a controller runs here already", namespace=config.namespace)
            return
        declared = launch.declare(config, worker, session, config.redis_url, timeout, autoscale)
        declared = dataclasses.replace(declared, policy=dataclasses.replace(declared.policy, again=again))
        if desired is not None:
            declared = dataclasses.replace(declared, desired_file=str(desired.absolute()))
        declared = dataclasses.replace(declared, audit=audit)
        ControllerHandle(declared, session.node_id).begin(timeout)
        log.info("the controller runs", pid=os.getpid(), ep_size=config.ep_size, groups=config.groups)
    finally:
        ray_session.disconnect()
