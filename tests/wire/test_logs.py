"""Structured logs."""

from __future__ import annotations

import json
import subprocess
import sys

CODE = """
import structlog
from shoal.wire import logs
logs.configure({level!r}, {style!r})
log = structlog.get_logger()
log.debug("quiet")
log.info("group changed", group="g0", epoch=3)
try:
    1 / 0
except ZeroDivisionError:
    log.exception("broke")
"""


def printed(level: str, style: str) -> list[str]:
    """Lines on stderr."""
    result = subprocess.run(
        [sys.executable, "-c", CODE.format(level=level, style=style)], capture_output=True, text=True, check=True
    )
    assert result.stdout == "", "logs go to stderr, answers to stdout"
    return result.stderr.splitlines()


def test_machines_get_one_json_object_per_line() -> None:
    """Without a terminal, by default; an exception's trace is a field of its line."""
    changed, broke = (json.loads(line) for line in printed("info", "auto"))
    assert (changed["event"], changed["group"], changed["epoch"], changed["level"]) == (
        "group changed",
        "g0",
        3,
        "info",
    )
    assert "ZeroDivisionError" in broke["exception"]


def test_the_level_is_obeyed() -> None:
    """Less than the level is not printed."""
    assert [json.loads(line)["event"] for line in printed("debug", "json")] == ["quiet", "group changed", "broke"]
    assert [json.loads(line)["event"] for line in printed("error", "json")] == ["broke"]


def test_people_get_words() -> None:
    """The event first, then what belongs to it."""
    assert any("group changed" in line and "epoch" in line for line in printed("info", "console"))
