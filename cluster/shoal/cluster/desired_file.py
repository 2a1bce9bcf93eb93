"""The size that is wanted as a file that somebody else writes: Kubernetes puts a ConfigMap's new content there.

Only a change of the file is acted on, so a size that was asked for by `shoal scale` stays until the file says another.
"""

from __future__ import annotations

import asyncio
import tomllib
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import structlog

from shoal.cluster.errors import ConfigError
from shoal.wire.registry import Desired

log = structlog.get_logger()

Sleep = Callable[[float], Awaitable[None]]


def wanted(path: Path) -> dict[str, Any]:
    """What the file says: `ep_size` and `groups`, TOML. Raises ConfigError."""
    try:
        document: dict[str, Any] = tomllib.loads(path.read_text())
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from error
    for key, value in document.items():
        if key not in ("ep_size", "groups") or type(value) is not int:
            raise ConfigError(f"{path}: {key} must be one of ep_size and groups, an integer, not {value!r}")
    return document


def said_by(path: Path, otherwise: Desired) -> Desired:
    """What the file says, and `otherwise` where it says nothing or cannot be read."""
    try:
        said = wanted(path)
    except ConfigError:
        return otherwise
    return Desired(said.get("ep_size", otherwise.ep_size), said.get("groups", otherwise.groups))


async def follow(
    path: Path, before: Desired, want: Callable[[Desired], Awaitable[str]], sleep: Sleep = asyncio.sleep
) -> None:
    """Look every two seconds, for ever; `before` is what the file said when it was last acted on.

    `want` is told of a new size and says what is wrong with it, empty when it was taken. One that could not be taken
    is tried again; one that is refused is logged once and left, until the file changes.
    """
    refused: Desired | None = None
    while True:
        await sleep(2.0)
        try:
            said = wanted(path)
        except ConfigError as error:
            log.warning("the desired size cannot be read", error=str(error))
            continue
        now = Desired(said.get("ep_size", before.ep_size), said.get("groups", before.groups))
        if now in (before, refused):
            continue
        try:
            problem = await want(now)
        except Exception as error:  # whatever it was, the next look tries again
            log.warning("the desired size was not taken", error=str(error), ep_size=now.ep_size, groups=now.groups)
            continue
        if problem:
            log.error("the desired size is refused", why=problem, ep_size=now.ep_size, groups=now.groups)
            refused = now
        else:
            before, refused = now, None
