"""The chart's containers as processes: what KubeRay and the kubelet would run, with the rendered commands.

They run in a network of their own (`unshare --net`), where every pod has its own loopback address, so that the chart's
ports are theirs. Where files lie, the names of services and Redis' port differ from a cluster and are replaced in every
string.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shlex
import signal
import socket
import struct
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import psutil
from grpc_health.v1 import health_pb2

from tests.chart.rendering import Manifest, the

REDIS_PORT = 6399
PASSWORD, TOKEN = "walk-password", "ab" * 32
PATIENCE = 180.0  # seconds for a part to become ready on a busy machine


class Place:
    """One pod's address and files, and how the strings of its manifest are told here."""

    def __init__(self, root: Path, checkpoint: Path, manifests: list[Manifest], ip: str = "127.0.0.1") -> None:
        self.root, self.manifests, self.ip = root, manifests, ip
        etc = f"etc-{ip}"
        self._replaced = {
            "/etc/shoal": str(root / etc),
            "/models/": f"{checkpoint.parent}/",
            "--data=/data": f"--data={root / 'data'}",
            "--port=6379": f"--port={REDIS_PORT}",
            "fish-shoal-redis:6379": f"127.0.0.1:{REDIS_PORT}",
            "--address=fish-shoal:": "--address=127.0.0.1:",
            "/proc/1/fd/1": str(root / "controller.log"),
            '"/tmp/shoal"': f'"{root / "state"}"',
            '"0.0.0.0"': f'"{ip}"',  # a pod has an address of its own, and so all ports
        }
        self.tmp = root / ip.rpartition(".")[2]  # short: names of sockets are at most 107 characters long
        self.tmp.mkdir(exist_ok=True)
        self.desired = root / etc / "desired/desired.toml"
        files = {
            f"{etc}/shoal.toml": the(manifests, "ConfigMap", "-config")["data"]["shoal.toml"],
            f"{etc}/desired/desired.toml": the(manifests, "ConfigMap", "-desired")["data"]["desired.toml"],
            f"{etc}/redis/password": PASSWORD,
            f"{etc}/redis/url": f"redis://:{PASSWORD}@fish-shoal-redis:6379/0",
        }
        for name, text in files.items():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_text(self.here(text))
        for name in ("data", "state"):
            (root / name).mkdir(exist_ok=True)

    def here(self, text: str) -> str:
        """A string of a manifest as it is true here."""
        for old, new in self._replaced.items():
            text = text.replace(old, new)
        return text

    def environment(self, container: dict[str, Any], **more: str) -> dict[str, str]:
        """The container's variables, and what fields of the pod say."""
        fields = {"status.podIP": self.ip, "metadata.name": f"fish-shoal-{self.ip.rpartition('.')[2]}",
                  "metadata.labels['ray.io/node-type']": "head"}  # fmt: skip
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
            self.end(process)

    @staticmethod
    def end(process: subprocess.Popen[bytes], seconds: float = 0.0) -> bool:
        """A pod's end: SIGTERM to its first process, and after so many seconds, or with that one, everything is killed.

        Whether it ended by itself."""
        with contextlib.suppress(psutil.NoSuchProcess):
            first = psutil.Process(process.pid)
            below = first.children(recursive=True)
            if first.name() == "unshare":
                [first] = first.children() or [first]
            if seconds:
                first.terminate()
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(seconds)
            by_itself = process.poll() is not None
            for left in below:
                with contextlib.suppress(psutil.NoSuchProcess):
                    left.kill()
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            return by_itself
        return True


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
        address = f"http://{place.ip}:{ports[asked['httpGet']['port']]}{asked['httpGet']['path']}"
        with contextlib.suppress(OSError), urllib.request.urlopen(address, timeout=5) as answer:
            return bool(answer.status == 200)
        return False
    if "tcpSocket" in asked:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", REDIS_PORT), timeout=5):
            return True
        return False
    with grpc.insecure_channel(f"{place.ip}:{asked['grpc']['port']}") as channel, contextlib.suppress(grpc.RpcError):
        check = channel.unary_unary(
            "/grpc.health.v1.Health/Check",
            request_serializer=health_pb2.HealthCheckRequest.SerializeToString,
            response_deserializer=health_pb2.HealthCheckResponse.FromString,
        )
        said: health_pb2.HealthCheckResponse = check(health_pb2.HealthCheckRequest(), timeout=5)
        return said.status == health_pb2.HealthCheckResponse.SERVING
    return False


def kuberay(head: bool, group: dict[str, Any], ip: str = "127.0.0.1", **changed: str) -> list[str]:
    """The `ray start` that KubeRay makes of rayStartParams, for a pod with this address."""
    parameters = {**group["rayStartParams"], **changed}
    first = ["--head", "--port=6379"] if head else ["--address=127.0.0.1:6379"]
    options = [f"--{key}={value}" for key, value in parameters.items()]
    return ["ray", "start", *first, "--block", f"--node-ip-address={ip}", "--disable-usage-stats", *options]


def by_kuberay(place: Place, ray: dict[str, Any]) -> dict[str, str]:
    """Variables that KubeRay sets in Ray's pods."""
    options = ray["gcsFaultToleranceOptions"]
    return {
        "RAY_AUTH_MODE": ray["authOptions"]["mode"],
        "RAY_AUTH_TOKEN": TOKEN,
        "RAY_TMPDIR": str(place.tmp),
        "RAY_REDIS_ADDRESS": place.here(options["redisAddress"]),
        "RAY_external_storage_namespace": options["externalStorageNamespace"],
        "RAY_gcs_rpc_server_reconnect_timeout_s": "600",
    }


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
