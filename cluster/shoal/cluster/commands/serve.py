"""`shoal serve`."""

from __future__ import annotations

import os
import sys
import time

import structlog

from shoal.cluster import logs
from shoal.cluster.config import Settings
from shoal.cluster.launch import LocalCluster
from shoal.cluster.processes import Interrupted, interruptible
from shoal.cluster.runfile import RunFile

log = structlog.get_logger()


def run(settings: Settings) -> None:
    """Start a cluster and serve until a signal. Raises ClusterError; ends the process itself after a second signal."""
    config = settings.cluster()
    logs.configure(config.log_level, config.log_format)
    cluster = LocalCluster(settings, say=log.info)
    with interruptible(cluster.kill):
        try:
            serve(cluster)
        except Interrupted as again:
            print("shoal: stopped at once", file=sys.stderr, flush=True)
            cluster.kill()
            # Not sys.exit: Ray's own exit handlers would wait for processes that are gone.
            os._exit(128 + again.number)


def serve(cluster: LocalCluster) -> None:
    """Until the first signal; the second one comes out as Interrupted."""
    try:
        announce(cluster.start())
        while True:
            cluster.check()
            time.sleep(0.5)
    except Interrupted as asked:
        print(f"\nshoal: {asked}: stopping; once more stops at once", file=sys.stderr, flush=True)
    finally:
        cluster.stop()
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
