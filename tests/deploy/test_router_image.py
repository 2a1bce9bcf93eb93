"""What runs in the router's image, with the packages of its lock alone."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def foreign() -> set[str]:
    """Modules that are installed here and not there."""
    lock = (ROOT / "requirements/router.lock").read_text()
    there = {name.lower().replace("_", "-") for name in re.findall(r"^([A-Za-z0-9._-]+)==", lock, re.MULTILINE)} | {
        "shoal"
    }
    return {
        module
        for module, packages in packages_distributions().items()
        if not {package.lower().replace("_", "-") for package in packages} & there
    }


@pytest.mark.parametrize("command", ["router", "redis", "health", "chat", "keys", "audit"])
def test_a_command_of_the_router_s_image_needs_nothing_else(command: str) -> None:
    """Its module is imported where every other package is missing."""
    code = (
        "import sys\n"
        f"for name in {sorted(foreign())!r}: sys.modules[name] = None\n"
        f"import shoal.cluster.cli, shoal.cluster.commands.{command}\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=environment)
    assert 0 == done.returncode, done.stderr
