"""`shoal version`."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version

_PARTS = ("torch", "triton", "ray", "grpcio", "redis")


def run() -> None:
    """Print our version and those that results depend on; nothing is imported for it."""
    print(f"shoal {installed('shoal') or 'from a source tree'}")
    print(f"python {platform.python_version()}")
    for name in _PARTS:
        print(f"{name} {installed(name) or 'not installed'}")


def installed(name: str) -> str | None:
    """Version of an installed distribution."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None
