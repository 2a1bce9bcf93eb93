"""templates/NOTES.txt."""

from __future__ import annotations

import subprocess

from tests.chart.rendering import CHART
from tests.chart.tools import tool


def test_every_template_has_a_test_file() -> None:
    """Named after it."""
    templates = {path.stem for path in (CHART / "templates").glob("*.yaml")}
    tests = {path.stem.removeprefix("test_") for path in (CHART.parents[1] / "tests/chart/templates").glob("test_*.py")}
    assert set() == templates - tests


def test_the_next_three_commands_are_told() -> None:
    """Wait, test, talk: with the names of this very release."""
    command = [str(tool("helm")), "install", "fish", str(CHART), "--dry-run", "--namespace", "sea"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={"KUBECONFIG": "/dev/null"})
    if "unreachable" in done.stderr or "cluster" in done.stderr:  # the oldest Helm asks a cluster even then
        text = (CHART / "templates" / "NOTES.txt").read_text()
    else:
        text = done.stdout
    for words in ("rollout status deployment/", "helm test ", "-- shoal chat"):
        assert words in text
