"""What a running cluster leaves for other commands."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from shoal.cluster import runfile
from shoal.cluster.errors import NotRunningError, StartError
from shoal.cluster.runfile import RunFile

RUN = RunFile(os.getpid(), 1.0, "127.0.0.1:1", "", "", "unix://:secret@/x", "127.0.0.1:2", "/m", ("g0",), "/logs")

HOLD = """
import sys, pathlib
from shoal.cluster import runfile
with runfile.owned(pathlib.Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_run_file_is_read_back(tmp_path: Path) -> None:
    """Other commands see exactly what was written, while the cluster lives."""
    with runfile.owned(tmp_path):
        RUN.write(tmp_path)
        assert runfile.read(tmp_path) == RUN


def test_a_run_file_is_its_owners_only(tmp_path: Path) -> None:
    """It holds the password of the embedded Redis."""
    with runfile.owned(tmp_path):
        RUN.write(tmp_path)
        assert stat.S_IMODE((tmp_path / "serve.json").stat().st_mode) == 0o600


def test_nothing_runs_where_nothing_was_started(tmp_path: Path) -> None:
    """No lock, no cluster, whatever files lie about."""
    RUN.write(tmp_path)
    assert runfile.owner(tmp_path) is None
    with pytest.raises(NotRunningError, match="no cluster runs"):
        runfile.read(tmp_path)


def test_a_cluster_that_is_still_starting_says_so(tmp_path: Path) -> None:
    """The lock is there, the file is not yet."""
    with runfile.owned(tmp_path), pytest.raises(NotRunningError, match="still starting"):
        runfile.read(tmp_path)


def test_the_files_are_gone_afterwards(tmp_path: Path) -> None:
    """An orderly end leaves nothing that says it runs."""
    with runfile.owned(tmp_path):
        RUN.write(tmp_path)
    assert runfile.owner(tmp_path) is None
    assert not (tmp_path / "serve.json").exists()


def test_one_directory_holds_one_cluster_for_as_long_as_it_lives(tmp_path: Path) -> None:
    """A second one is refused while the first lives, and not after SIGKILL."""
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        assert runfile.owner(tmp_path) == holder.pid
        with pytest.raises(StartError, match=r"already runs from .*cluster\.state_dir"), runfile.owned(tmp_path):
            pass
    finally:
        holder.kill()
        holder.communicate()
    with runfile.owned(tmp_path):
        assert runfile.owner(tmp_path) == os.getpid()


def test_a_directory_that_cannot_be_made_is_a_clear_error(tmp_path: Path) -> None:
    """The path is named."""
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(StartError, match=r"state directory .*file/state cannot be used"),
        runfile.owned(tmp_path / "file" / "state"),
    ):
        pass
