"""The chart's containers as processes: what KubeRay and the kubelet would run, with the rendered commands.

    unshare --net python -m tests.e2e.walk DIRECTORY CHECKPOINT

Redis, a Ray head with its start hook, a Ray worker with two ranks, a router and at last the pod of `helm test` are
started from the rendered manifests: their commands, environment, files and probes. Three things differ from a cluster
and are replaced in every string: where files lie, names of services, and Redis' port, because these "pods" share one
address. Prints what it does and, as its last line, a JSON object of what it saw.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shlex
import signal
import socket
import struct
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
from grpc_health.v1 import health_pb2

from tests.chart.rendering import Manifest, render, the

REDIS_PORT = 6399
PASSWORD, TOKEN = "walk-password", "ab" * 32
PATIENCE = 180.0  # seconds for a part to become ready on a busy machine


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
    }  # fmt: skip


class Place:
    """Where the pods' files lie, and how their strings are told here."""

    def __init__(self, root: Path, checkpoint: Path, manifests: list[Manifest]) -> None:
        self.root, self.manifests = root, manifests
        self._replaced = {
            "/etc/shoal": str(root / "etc"),
            "/models/": f"{checkpoint.parent}/",
            "--data=/data": f"--data={root / 'data'}",
            "--port=6379": f"--port={REDIS_PORT}",
            "fish-shoal-redis:6379": f"127.0.0.1:{REDIS_PORT}",
            "--address=fish-shoal:": "--address=127.0.0.1:",
            "/proc/1/fd/1": str(root / "controller.log"),
            '"/tmp/shoal"': f'"{root / "state"}"',
        }
        files = {
            "etc/shoal.toml": the(manifests, "ConfigMap", "-config")["data"]["shoal.toml"],
            "etc/desired/desired.toml": the(manifests, "ConfigMap", "-desired")["data"]["desired.toml"],
            "etc/redis/password": PASSWORD,
            "etc/redis/url": f"redis://:{PASSWORD}@fish-shoal-redis:6379/0",
        }
        for name, text in files.items():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_text(self.here(text))
        for name in ("data", "state"):
            (root / name).mkdir()

    def here(self, text: str) -> str:
        """A string of a manifest as it is true here."""
        for old, new in self._replaced.items():
            text = text.replace(old, new)
        return text

    def environment(self, container: dict[str, Any], **more: str) -> dict[str, str]:
        """The container's variables; fields of the pod are this machine's."""
        fields = {"status.podIP": "127.0.0.1", "metadata.name": "fish-shoal-router-0"}
        made = {}
        for variable in container.get("env", []):
            value = variable.get("value")
            made[variable["name"]] = (
                self.here(value) if value is not None else fields[variable["valueFrom"]["fieldRef"]["fieldPath"]]
            )
        kept = {key: os.environ[key] for key in ("PATH", "PYTHONPATH") if key in os.environ}
        return {**kept, **made, "HOME": str(self.root), **more}

    def command(self, container: dict[str, Any]) -> list[str]:
        """Command and arguments."""
        return [self.here(word) for word in (*container["command"], *container.get("args", []))]


class Pods:
    """Processes that were started, by name."""

    def __init__(self, place: Place) -> None:
        self._place = place
        self.running: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, name: str, command: list[str], environment: dict[str, str]) -> None:
        """As a process group of its own, its output in a file."""
        say(f"{name}: {shlex.join(command)}")
        with (self._place.root / f"{name}.log").open("ab") as log:
            self.running[name] = subprocess.Popen(
                command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )

    def stop(self) -> None:
        """Everything, hard."""
        for process in self.running.values():
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def say(words: str) -> None:
    """Progress."""
    print(words, flush=True)


def until(what: str, holds: Callable[[], bool], patience: float = PATIENCE) -> float:
    """Wait; how long it took. Raises TimeoutError."""
    began = time.monotonic()
    while not holds():
        if time.monotonic() - began > patience:
            raise TimeoutError(f"not within {patience:g} s: {what}")
        time.sleep(0.25)
    say(f"  {what} after {time.monotonic() - began:.1f} s")
    return time.monotonic() - began


def holds(place: Place, container: dict[str, Any], probe: str) -> bool:
    """A container's probe, asked as the kubelet would."""
    asked = container[probe]
    if "exec" in asked:
        command = [place.here(word) for word in asked["exec"]["command"]]
        done = subprocess.run(command, env=place.environment(container), capture_output=True, timeout=60, check=False)
        return done.returncode == 0
    if "httpGet" in asked:
        ports = {p["name"]: p["containerPort"] for p in container["ports"]}
        address = f"http://127.0.0.1:{ports[asked['httpGet']['port']]}{asked['httpGet']['path']}"
        with contextlib.suppress(OSError), urllib.request.urlopen(address, timeout=5) as answer:
            return bool(answer.status == 200)
        return False
    if "tcpSocket" in asked:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", REDIS_PORT), timeout=5):
            return True
        return False
    with grpc.insecure_channel(f"127.0.0.1:{asked['grpc']['port']}") as channel, contextlib.suppress(grpc.RpcError):
        check = channel.unary_unary(
            "/grpc.health.v1.Health/Check",
            request_serializer=health_pb2.HealthCheckRequest.SerializeToString,
            response_deserializer=health_pb2.HealthCheckResponse.FromString,
        )
        said: health_pb2.HealthCheckResponse = check(health_pb2.HealthCheckRequest(), timeout=5)
        return said.status == health_pb2.HealthCheckResponse.SERVING
    return False


def kuberay(head: bool, group: dict[str, Any], **changed: str) -> list[str]:
    """The `ray start` that KubeRay makes of rayStartParams."""
    parameters = {**group["rayStartParams"], **changed}
    first = ["--head", "--port=6379"] if head else ["--address=127.0.0.1:6379"]
    options = [f"--{key}={value}" for key, value in parameters.items()]
    return ["ray", "start", *first, "--block", "--node-ip-address=127.0.0.1", "--disable-usage-stats", *options]


def loopback_up() -> None:
    """A new network namespace has its loopback switched off."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        up = 0x1 | 0x40  # IFF_UP, IFF_RUNNING
        fcntl.ioctl(control, 0x8914, struct.pack("16sh14x", b"lo", up))  # SIOCSIFFLAGS


def scrape(*ports: int) -> str:
    """What Prometheus would read on these ports."""
    texts = []
    for port in ports:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
            texts.append(answer.read().decode())
    return "\n".join(texts)


@contextlib.contextmanager
def pods(place: Place) -> Iterator[Pods]:
    """Whatever happens, nothing is left."""
    made = Pods(place)
    try:
        yield made
    finally:
        made.stop()


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
    with pods(place) as running:
        running.start("redis", place.command(redis), place.environment(redis))
        until("redis is ready", lambda: holds(place, redis, "readinessProbe") and holds(place, redis, "livenessProbe"))

        options = ray["gcsFaultToleranceOptions"]
        by_kuberay = {
            "RAY_AUTH_MODE": ray["authOptions"]["mode"], "RAY_AUTH_TOKEN": TOKEN, "RAY_TMPDIR": str(root),
            "RAY_REDIS_ADDRESS": place.here(options["redisAddress"]),
            "RAY_external_storage_namespace": options["externalStorageNamespace"],
        }  # fmt: skip
        start = [*kuberay(True, ray["headGroupSpec"]), f"--redis-password={PASSWORD}"]
        running.start("head", start, place.environment(head, **by_kuberay))
        hook = [place.here(word) for word in head["lifecycle"]["postStart"]["exec"]["command"]]
        running.start("hook", hook, place.environment(head, **by_kuberay))
        until("the head is alive", lambda: holds(place, head, "livenessProbe"))
        # Its own port: in a cluster this node has an address of its own.
        worker["livenessProbe"]["grpc"]["port"] = 6381
        joined = kuberay(False, group, **{"node-manager-port": "6381"})
        running.start("worker", joined, place.environment(worker, **by_kuberay))
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

        # What `helm upgrade --set expertParallel.size=1` changes in the file that the controller watches.
        (root / "etc/desired/desired.toml").write_text("ep_size = 1\ngroups = 1\n")
        seen["scale_seconds"] = until("one rank is left", lambda: not holds(place, worker, "readinessProbe"))
        worker["readinessProbe"]["exec"]["command"][-1] = "1"
        until("it serves", lambda: holds(place, worker, "readinessProbe"))
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


def main() -> int:
    """The last line is what was seen."""
    root, checkpoint = Path(sys.argv[1]), Path(sys.argv[2])
    loopback_up()
    print(json.dumps(walk(root, checkpoint)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
