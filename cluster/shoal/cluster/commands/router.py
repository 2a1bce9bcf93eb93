"""`shoal router`."""

from __future__ import annotations

import asyncio
from typing import Any

from shoal.cluster.config import Settings
from shoal.cluster.errors import StartError
from shoal.cluster.processes import die_with
from shoal.wire import logs


def run(settings: Settings, parent: int | None) -> None:
    """Serve until a signal. Raises ConfigError, StartError. With `parent` the process ends when that one does."""
    if parent is not None:
        die_with(parent)
    from shoal.router.errors import StartError as RouterStartError
    from shoal.router.server import run as serve

    cluster = settings.cluster()
    fallback: dict[str, Any] = {}
    if not settings.given("router.model_dir") and cluster.model:
        fallback["model_dir"] = cluster.model
    if not settings.given("router.redis_url") and cluster.redis_url:
        fallback["redis_url"] = cluster.redis_url
    config = settings.router(**fallback)
    logs.configure(config.log_level, cluster.log_format)
    try:
        asyncio.run(serve(config))
    except RouterStartError as error:
        raise StartError(str(error)) from error
