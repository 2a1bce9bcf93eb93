"""How a section of the configuration says that a value is wrong: by its key."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


class SettingError(ValueError):
    """A setting has a value that it may not have; the message names `section.key`."""


def requirer(section: str, config: Any) -> Callable[[str, bool, str], None]:
    """A check of `config`'s values: `require(key, holds, expected)` raises SettingError unless it holds."""

    def require(key: str, holds: bool, expected: str) -> None:
        if not holds:
            raise SettingError(f"{section}.{key} must be {expected}, not {getattr(config, key)!r}")

    return require
