"""The keeper of Ray's control service, over a process that only notes how it was started."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from shoal.cluster.gcs_keeper import GcsKeeper
from shoal.cluster.processes import is_alive

_SERVICE = "import os, sys, time; open(sys.argv[1], 'a').write(sys.argv[2] + '\\n'); time.sleep(60)"


def becomes(holds: Callable[[], bool], within: float = 10.0) -> bool:
    """Whether it holds before the time is up."""
    give_up = time.monotonic() + within
    while not holds() and time.monotonic() < give_up:
        time.sleep(0.01)
    return holds()


@pytest.fixture
def notes(tmp_path: Path) -> Path:
    """Where the service notes its port, a line per start."""
    return tmp_path / "notes"


@pytest.fixture
def first(notes: Path) -> Iterator[subprocess.Popen[bytes]]:
    """The one that Ray started, on a port that it chose itself."""
    process = subprocess.Popen([sys.executable, "-c", _SERVICE, str(notes), "--gcs_server_port=0"])
    assert becomes(notes.exists)
    yield process
    process.kill()
    process.wait()


def test_a_dead_service_comes_back_at_its_port_again_and_again(first: subprocess.Popen[bytes], notes: Path) -> None:
    """Whoever knew the old one finds the new one."""
    told: list[int] = []
    keeper = GcsKeeper(first.pid, "10.0.0.1:7777", told.append)
    for restarts in (1, 2):
        os.kill(keeper.pid, signal.SIGKILL)
        assert becomes(lambda n=restarts: len(told) == n and is_alive(told[-1]))  # type: ignore[misc]  # the default binds n
        assert becomes(lambda n=restarts: len(notes.read_text().splitlines()) == 1 + n)  # type: ignore[misc]  # as above
    keeper.stop()
    assert ["--gcs_server_port=0", *["--gcs_server_port=7777"] * 2] == notes.read_text().splitlines()
    assert not is_alive(told[-1]), "what it started ends with it"
    keeper.stop()


def test_a_stopped_keeper_lets_the_service_end(first: subprocess.Popen[bytes], notes: Path) -> None:
    """Ray is being stopped: nobody starts its service again."""
    keeper = GcsKeeper(first.pid, "10.0.0.1:7777")
    keeper.stop()
    assert is_alive(first.pid), "it is Ray's to end"
    first.kill()
    first.wait()
    time.sleep(0.1)
    assert ["--gcs_server_port=0"] == notes.read_text().splitlines()
