"""`shoal chaos` breaks nothing in a cluster that was not started for it, whatever it is told itself."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest

from shoal.cluster import runfile
from shoal.cluster.admin import AdminServer
from shoal.cluster.commands import chaos
from shoal.cluster.config import Settings, load
from shoal.cluster.errors import ClusterError, ConfigError, NotRunningError
from shoal.proto.v1 import admin_pb2 as pb
from shoal.wire.registry import Desired
from shoal.wire.tls import TlsConfig
from tests.cluster.test_runfile import RUN


def settings(state_dir: Path) -> Settings:
    """Of somebody who would like to."""
    return load(environment={}, assignments=["cluster.chaos=true", f"cluster.state_dir={state_dir}"])


@pytest.mark.parametrize("fault", chaos.HERE_FAULTS)
def test_the_run_file_of_the_cluster_says_whether_its_machine_may_suffer(fault: str, tmp_path: Path) -> None:
    """Not the settings of who asks. A cluster that allows it and has no Redis of its own says that."""
    with pytest.raises(NotRunningError):
        chaos.run(settings(tmp_path), fault, "", 0.0, 0.0)
    with runfile.owned(tmp_path):
        RUN.write(tmp_path)
        with pytest.raises(ConfigError, match=r"start the cluster with cluster.chaos = true"):
            chaos.run(settings(tmp_path), fault, "", 0.0, 0.0)
        assert not (tmp_path / ".ballast").exists()
        replace(RUN, chaos=True).write(tmp_path)
        if fault == "redis":
            with pytest.raises(ClusterError, match="no embedded Redis"):
                chaos.run(settings(tmp_path), fault, "", 0.0, 0.0)


class RefusedError(Exception):
    """What a call ends with."""


class Context:
    """Of a call that is refused."""

    async def abort(self, code: grpc.StatusCode, details: str) -> None:
        raise RefusedError(code, details)


@pytest.mark.parametrize("fault", chaos.WORKER_FAULTS)
async def test_a_controller_without_a_saboteur_breaks_no_worker(fault: str) -> None:
    """It has one only where cluster.chaos was set when it started."""
    unused: Any = None
    context: Any = Context()
    admin = AdminServer(unused, unused, unused, None, unused, Desired(2, 1), 0.0, TlsConfig())
    request = pb.InjectRequest(fault=pb.Fault.Value(f"FAULT_{fault.upper()}"), worker_id="g0-0", seconds=1.0)
    with pytest.raises(RefusedError, match=r"FAILED_PRECONDITION.*cluster.chaos = true"):
        await admin.Inject(request, context)
