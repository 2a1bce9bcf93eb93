"""`shoal serve`."""

from __future__ import annotations

import sys
import time

import structlog

from shoal.cluster.config import Settings
from shoal.cluster.launch import LocalCluster, conduct
from shoal.cluster.runfile import RunFile
from shoal.wire import logs

log = structlog.get_logger()


def run(settings: Settings) -> None:
    """Start a cluster and serve until a signal. Raises ClusterError; ends the process itself after a second signal."""
    config = settings.cluster()
    logs.configure(config.log_level, config.log_format)
    cluster = LocalCluster(settings, say=log.info)

    def serve(run: RunFile) -> None:
        announce(run)
        while True:
            cluster.check()
            time.sleep(0.5)

    conduct(cluster, serve, stopping=lambda why: print(f"\nshoal: {why}", file=sys.stderr, flush=True))
    print("shoal: stopped", file=sys.stderr)


def announce(run: RunFile) -> None:
    """Say where things are, on stdout."""
    seconds = time.time() - run.started
    print(f"\nshoal serves {run.model}  (ready after {seconds:.1f} s)")
    print(f"  gRPC      {run.router}")
    if run.http:
        print(f"  HTTP      http://{run.http}/v1")
    if run.metrics:
        print(f"  metrics   http://{run.metrics}/metrics")
    print(f"  logs      {run.logs}")
    print("  talk to it with `shoal chat`, look at it with `shoal status`, stop it with Ctrl-C\n", flush=True)
