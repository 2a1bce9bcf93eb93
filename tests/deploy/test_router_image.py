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


COMMANDS = [
    "router",
    "redis",
    "health",
    "chat",
    "keys",
    "audit",
    "status",
    "top",
    "doctor",
    "scale",
    "rebalance",
    "drain",
]


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_of_the_router_s_image_needs_nothing_else(command: str) -> None:
    """Its module is imported where every other package is missing."""
    alone(f"import shoal.cluster.cli, shoal.cluster.commands.{command}")


def test_the_doctor_finds_its_way_there(tmp_path: Path) -> None:
    """Without torch and Ray it still comes to its end, and says what a router lacks."""
    told = alone(
        "from shoal.cluster.commands import doctor\n"
        "from shoal.cluster.config import load\n"
        f"settings = load(environment={{}}, assignments=['cluster.model={tmp_path}'])\n"
        "for found in doctor.findings(settings, hashes=False): print(found.check, found.state, found.words)\n"
    )
    assert "lacks config.json and tokenizer.json" in told


def alone(code: str) -> str:
    """What this prints where every other package is missing."""
    missing = f"import sys\nfor name in {sorted(foreign())!r}: sys.modules[name] = None\n"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", missing + code], capture_output=True, text=True, check=False, env=environment
    )
    assert 0 == done.returncode, done.stderr
    return done.stdout
