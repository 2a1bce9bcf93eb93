"""Which cluster a command is about."""

from __future__ import annotations

from pathlib import Path

import pytest

from shoal.cluster import runfile
from shoal.cluster.config import Settings, load
from shoal.cluster.errors import NotRunningError
from shoal.cluster.runfile import RunFile
from shoal.cluster.whereabouts import Whereabouts, find


def settings(tmp_path: Path, *said: str) -> Settings:
    """With a state directory of its own."""
    return load(environment={}, assignments=(f"cluster.state_dir={tmp_path}", *said))


IN_A_POD = ("router.host=0.0.0.0", "router.port=50051", "router.metrics_host=0.0.0.0", "router.metrics_port=9464",
            "cluster.redis_url=redis://r:6379/0")  # fmt: skip


def test_in_a_router_s_pod_it_is_that_router(tmp_path: Path) -> None:
    """`shoal serve` does not run there; the settings say where the router listens, which is reached over loopback."""
    here = Whereabouts("127.0.0.1:50051", "redis://r:6379/0", "127.0.0.1:9464")
    assert here == find(settings(tmp_path, *IN_A_POD), None)


def test_what_runs_here_wins_over_settings_and_what_is_named_over_both(tmp_path: Path) -> None:
    """With everything that its file says."""
    run = RunFile(7, 0.0, "127.0.0.1:1", "127.0.0.1:2", "127.0.0.1:3", "redis://own:1/0", "ray", "/m", ("g0",), "/l")
    with runfile.owned(tmp_path):
        run.write(tmp_path)
        assert Whereabouts("127.0.0.1:1", "redis://own:1/0", "127.0.0.1:3", 7) == find(
            settings(tmp_path, *IN_A_POD), None
        )
        assert Whereabouts("there:9", "redis://r:6379/0") == find(settings(tmp_path, *IN_A_POD), "there:9")


def test_nothing_anywhere_is_said(tmp_path: Path) -> None:
    """No guess is made about a port that nobody named."""
    with pytest.raises(NotRunningError, match="shoal serve"):
        find(settings(tmp_path), None)
