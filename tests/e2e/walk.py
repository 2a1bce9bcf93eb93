"""The rendered chart walked through: every entry point as a process, every probe, one chat, scaling, and the end.

    unshare --net --pid --fork --mount-proc python -m tests.e2e.walk DIRECTORY CHECKPOINT

Redis, a Ray head with its start hook, a Ray worker with two ranks, a router and at last the pod of `helm test` are
started from the rendered manifests: their commands, environment, files and probes. Prints what it does and, as its last
line, a JSON object of what it saw.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.chart.rendering import render, the
from tests.e2e.rendered import (
    PASSWORD,
    PATIENCE,
    Place,
    by_kuberay,
    holds,
    kuberay,
    loopback_up,
    pods,
    say,
    scrape,
    until,
)
from tests.wire.collector import collecting


def values(model: str) -> dict[str, Any]:
    """A small installation on CPUs: two ranks in one pod, a small cache."""
    return {
        "model": {"name": model},
        "expertParallel": {"size": 2},
        "worker": {"device": "cpu", "threads": 1, "ranksPerPod": 2, "tolerations": [], "drainSeconds": 20,
                   "env": [{"name": "GLOO_SOCKET_IFNAME", "value": "lo"}, {"name": "OMP_NUM_THREADS", "value": "1"}]},
        "router": {"replicas": 1, "drainSeconds": 5, "lameDuckSeconds": 1},
        "config": {"worker": {"kv_tokens": 4096}},
        "redis": {"existingSecret": "redis"},
        "tracing": {"endpoint": "http://127.0.0.1:4317"},
    }  # fmt: skip


def walk(root: Path, checkpoint: Path) -> dict[str, Any]:
    """Start everything in order, ask every probe, chat, drain. What was seen."""
    place = Place(root, checkpoint, render(values(checkpoint.name)))
    ray = the(place.manifests, "RayCluster")["spec"]
    [redis] = the(place.manifests, "StatefulSet")["spec"]["template"]["spec"]["containers"]
    [head] = ray["headGroupSpec"]["template"]["spec"]["containers"]
    [group] = ray["workerGroupSpecs"]
    [worker] = group["template"]["spec"]["containers"]
    [router] = the(place.manifests, "Deployment")["spec"]["template"]["spec"]["containers"]
    [chat] = the(place.manifests, "Pod", "-chat")["spec"]["containers"]
    seen: dict[str, Any] = {}
    with collecting(4317) as collector, pods(place) as running:
        running.start("redis", place.command(redis), place.environment(redis))
        until("redis is ready", lambda: holds(place, redis, "readinessProbe") and holds(place, redis, "livenessProbe"))

        more = by_kuberay(place, ray)
        start = [*kuberay(True, ray["headGroupSpec"]), f"--redis-password={PASSWORD}"]
        running.start("head", start, place.environment(head, **more))
        hook = [place.here(word) for word in head["lifecycle"]["postStart"]["exec"]["command"]]
        running.start("hook", hook, place.environment(head, **more))
        until("the head is alive", lambda: holds(place, head, "livenessProbe"))
        # Its own port: in a cluster this node has an address of its own.
        worker["livenessProbe"]["grpc"]["port"] = 6381
        joined = kuberay(False, group, **{"node-manager-port": "6381"})
        running.start("worker", joined, place.environment(worker, **more))
        until("the worker's node is alive", lambda: holds(place, worker, "livenessProbe"))

        running.start("router", place.command(router), place.environment(router))
        until("the router is alive", lambda: holds(place, router, "livenessProbe"))
        seen["ready_seconds"] = until("both ranks are ready", lambda: holds(place, worker, "readinessProbe"))
        until("the router is ready", lambda: holds(place, router, "readinessProbe"))

        say(f"helm test: {shlex.join(place.command(chat))}")
        done = subprocess.run(place.command(chat), env=place.environment(chat), capture_output=True, text=True,
                              timeout=PATIENCE, check=False)  # fmt: skip
        say(done.stdout + done.stderr)
        seen["helm_test"] = done.returncode
        seen["scrape"] = scrape(9464, 21000, 21001)
        # Workers send their spans every few seconds.
        until("a trace has arrived", lambda: any(len(collector.of(span.trace)) == 2 for span in collector.spans))
        [seen["trace"]] = [
            {service: dataclasses.asdict(span) for service, span in collector.of(trace).items()}
            for trace in {span.trace for span in collector.spans} if len(collector.of(trace)) == 2
        ]  # fmt: skip

        # What people ask in the router's pod, and what they read of the others: `kubectl exec` and `kubectl logs`.
        done = subprocess.run(["shoal", "status", "--json"], env=place.environment(router), capture_output=True,
                              text=True, timeout=60, check=False)  # fmt: skip
        seen["status"] = json.loads(done.stdout) if done.returncode == 0 else done.stdout + done.stderr
        seen["roles_heard"] = sorted({role for name in ("head", "worker") for role in roles_in(root / f"{name}.log")})

        # What `helm upgrade --set expertParallel.size=1` changes in the file that the controller watches.
        place.desired.write_text("ep_size = 1\ngroups = 1\n")
        seen["scale_seconds"] = until("one rank is left", lambda: not holds(place, worker, "readinessProbe"))
        until("it serves", lambda: holds(place, router, "readinessProbe"))
        done = subprocess.run(place.command(chat), env=place.environment(chat), capture_output=True, text=True,
                              timeout=PATIENCE, check=False)  # fmt: skip
        say(done.stdout + done.stderr)
        seen["chat_after_scaling"] = done.returncode

        leave = [place.here(word) for word in worker["lifecycle"]["preStop"]["exec"]["command"]]
        done = subprocess.run(leave, env=place.environment(worker), capture_output=True, text=True, timeout=60,
                              check=False)  # fmt: skip
        say(done.stdout + done.stderr)
        seen["drain"] = done.returncode
        running.running["router"].terminate()
        seen["router_exit"] = running.running["router"].wait(30)
    return seen


def roles_in(log: Path) -> Iterator[str]:
    """Who says something in a container's log, as JSON."""
    for line in log.read_text(errors="replace").splitlines():
        with contextlib.suppress(ValueError, KeyError, TypeError):  # Ray speaks too
            yield json.loads(line)["role"]


def main() -> int:
    """The last line is what was seen."""
    root, checkpoint = Path(sys.argv[1]), Path(sys.argv[2])
    loopback_up()
    print(json.dumps(walk(root, checkpoint)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
