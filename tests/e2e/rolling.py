"""A new version rolled out under load: routers as their Deployment does it, workers and the head as the README says.

    unshare --net --pid --fork --mount-proc python -m tests.e2e.rolling DIRECTORY CHECKPOINT

Two workers and a router run with the rendered commands while clients keep streams open. Then a new router starts
beside the old one, which is ended as a kubelet does it: its preStop hook and its removal from the service at the same
time, SIGTERM, and SIGKILL when its grace period is over. Each worker is ended so and replaced, and at last the head.
Prints what it does and, as its last line, a JSON object of what the clients saw.
"""

from __future__ import annotations

import json
import random
import shlex
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc

from shoal.proto.v1 import inference_pb2 as api
from shoal.proto.v1.inference_pb2_grpc import InferenceServiceStub
from tests.chart.rendering import Manifest, render, the
from tests.e2e.rendered import (
    PASSWORD,
    Place,
    Pods,
    by_kuberay,
    holds,
    kuberay,
    loopback_up,
    pods,
    say,
    until,
)

CLIENTS = 6
QUESTIONS = 12
TOKENS = 96
PROPAGATION = 1.0  # seconds until everybody has heard that a router is no longer in the service


def values(model: str) -> dict[str, Any]:
    """Two workers in pods of their own; drains long enough for a busy machine."""
    return {
        "model": {"name": model},
        "expertParallel": {"size": 2},
        "worker": {"device": "cpu", "threads": 1, "tolerations": [], "drainSeconds": 60,
                   "env": [{"name": "GLOO_SOCKET_IFNAME", "value": "lo"}, {"name": "OMP_NUM_THREADS", "value": "1"}]},
        "router": {"replicas": 1, "drainSeconds": 60, "lameDuckSeconds": 3},
        "config": {"worker": {"kv_tokens": 8192}},
        "redis": {"existingSecret": "redis"},
    }  # fmt: skip


@dataclass
class Service:
    """The routers that new streams go to."""

    addresses: set[str] = field(default_factory=set)

    def leave(self, address: str) -> None:
        """Everybody hears of it a little later."""
        threading.Timer(PROPAGATION, self.addresses.discard, (address,)).start()


@dataclass
class Load:
    """Clients that ask the same questions again and again, each in a stream and on a connection of its own."""

    service: Service
    answers: dict[int, list[int]] = field(default_factory=dict)
    """What each question was answered with before anything was touched."""
    streams: int = 0
    failed: list[str] = field(default_factory=list)
    different: list[int] = field(default_factory=list)
    longest: float = 0.0
    _stop: threading.Event = field(default_factory=threading.Event)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _clients: list[threading.Thread] = field(default_factory=list)

    def ask(self, question: int) -> list[int]:
        """One stream to its end. Raises grpc.RpcError, and ValueError when it just stops."""
        address = random.choice(sorted(self.service.addresses))
        request = api.GenerateRequest(
            text=f"Question {question}?",
            sampling=api.Sampling(seed=question, temperature=1.0),
            limits=api.Limits(max_tokens=TOKENS, ignore_eos=True),
        )
        tokens: list[int] = []
        with grpc.insecure_channel(address) as channel:
            for event in InferenceServiceStub(channel).Generate(request, timeout=120):
                tokens += event.tokens.ids
                if event.HasField("done"):
                    return tokens
        raise ValueError(f"a stream from {address} ended without an end")

    def start(self) -> None:
        """Ask everything once, then begin."""
        self.answers = {question: self.ask(question) for question in range(QUESTIONS)}
        for number in range(CLIENTS):
            self._clients.append(threading.Thread(target=self._client, args=(number,)))
            self._clients[-1].start()

    def stop(self) -> None:
        """After the streams that run."""
        self._stop.set()
        for client in self._clients:
            client.join()

    def _client(self, number: int) -> None:
        question = number
        while not self._stop.is_set():
            question, began, problem = (question + 1) % QUESTIONS, time.monotonic(), ""
            answer: list[int] = []
            try:
                answer = self.ask(question)
            except grpc.RpcError as error:
                problem = f"{error.code().name}: {error.details()}"
            except ValueError as error:
                problem = str(error)
            with self._lock:
                self.streams += 1
                self.longest = max(self.longest, time.monotonic() - began)
                if problem:
                    self.failed.append(problem)
                elif answer != self.answers[question]:
                    self.different.append(question)


@dataclass
class Cluster:
    """What runs, and how its pods come and go."""

    root: Path
    checkpoint: Path
    manifests: list[Manifest]
    running: Pods
    service: Service
    killed: list[str] = field(default_factory=list)
    """Pods whose grace period was over before they had ended."""
    hooks: dict[str, int] = field(default_factory=dict)
    """Exit status of each preStop hook."""
    _places: dict[str, Place] = field(default_factory=dict)
    _head: tuple[list[str], dict[str, str]] = ([], {})
    """Its command line and environment."""

    def place(self, name: str, number: int) -> Place:
        """A pod's, made once."""
        return self._places.setdefault(name, Place(self.root, self.checkpoint, self.manifests, f"127.0.0.{number}"))

    @property
    def ray(self) -> dict[str, Any]:
        """The RayCluster's specification."""
        spec: dict[str, Any] = the(self.manifests, "RayCluster")["spec"]
        return spec

    def template(self, name: str) -> dict[str, Any]:
        """Of the pod with this name."""
        kind = name.rstrip("0123456789")
        made: dict[str, Any] = {
            "router": lambda: the(self.manifests, "Deployment")["spec"]["template"]["spec"],
            "worker": lambda: self.ray["workerGroupSpecs"][0]["template"]["spec"],
            "head": lambda: self.ray["headGroupSpec"]["template"]["spec"],
        }[kind]()
        return made

    def ready(self, name: str) -> bool:
        """What its readiness probe says."""
        return holds(self._places[name], self.template(name)["containers"][0], "readinessProbe")

    def redis(self) -> None:
        """The bundled one."""
        place = self.place("redis", 1)
        [container] = the(self.manifests, "StatefulSet")["spec"]["template"]["spec"]["containers"]
        self.running.start("redis", place.command(container), place.environment(container))
        until("redis is ready", lambda: holds(place, container, "readinessProbe"))

    def head(self) -> None:
        """Ray's head, whose start hook starts the controller where there is none."""
        place = self.place("head", 1)
        [container] = self.template("head")["containers"]
        environment = place.environment(container, **by_kuberay(place, self.ray))
        start = [*kuberay(True, self.ray["headGroupSpec"]), f"--redis-password={PASSWORD}"]
        hook = [place.here(word) for word in container["lifecycle"]["postStart"]["exec"]["command"]]
        # A head that saw processes of another Ray would not start, so this pod sees its own alone.
        alone = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc", "/bin/sh", "-c"]
        self._head = ([*alone, f"{shlex.join(hook)}; exec {shlex.join(start)}"], environment)
        self.running.start("head", *self._head)
        until("the head is alive", lambda: self.head_runs() and holds(place, container, "livenessProbe"))

    def head_runs(self) -> bool:
        """Start it again where it ended, as a kubelet does: Ray gives a raylet 30 s to come up, a busy machine more."""
        if self.running.running["head"].poll() is not None:
            self.running.start("head", *self._head)
            return False
        return True

    def worker(self, number: int) -> None:
        """A worker's pod; it is ready later."""
        name = f"worker{number}"
        place = self.place(name, number)
        [container] = self.template(name)["containers"]
        [group] = self.ray["workerGroupSpecs"]
        # Ray's node listens on every address of this machine, and nodes of one machine must not start at once.
        port = 6380 + number
        start = kuberay(False, group, place.ip, **{"node-manager-port": str(port)})
        self.running.start(name, start, place.environment(container, **by_kuberay(place, self.ray)))
        alive = container | {"livenessProbe": {"grpc": {"port": port}}}
        until(f"{name} is alive", lambda: holds(place, alive, "livenessProbe"))

    def router(self, number: int) -> None:
        """A router's pod, in the service once it is ready."""
        name = f"router{number}"
        place = self.place(name, number)
        [container] = self.template(name)["containers"]
        self.running.start(name, place.command(container), place.environment(container))
        until(f"{name} is ready", lambda: self.ready(name))
        self.service.addresses.add(f"{place.ip}:50051")

    def end(self, name: str) -> float:
        """As a kubelet ends a pod; how long it took."""
        place, template, began = self._places[name], self.template(name), time.monotonic()
        [container] = template["containers"]
        give_up = began + template.get("terminationGracePeriodSeconds", 30)
        self.service.leave(f"{place.ip}:50051")
        if hook := container.get("lifecycle", {}).get("preStop"):
            command = [place.here(word) for word in hook["exec"]["command"]]
            log = (self.root / f"{name}.log").open("ab")
            with log:
                done = subprocess.run(command, env=place.environment(container), stdout=log, stderr=log, check=False,
                                      timeout=give_up - time.monotonic())  # fmt: skip
            self.hooks[name] = done.returncode
        if not self.running.end(self.running.running.pop(name), max(0.1, give_up - time.monotonic())):
            self.killed.append(name)
        say(f"  {name} ended after {time.monotonic() - began:.1f} s")
        return time.monotonic() - began


def roll(cluster: Cluster, load: Load) -> None:
    """Replace everything, one after the other."""
    time.sleep(2.0)
    cluster.router(22)
    cluster.end("router21")
    live = ["worker11", "worker12"]
    for number, old in enumerate(tuple(live), start=13):
        say(f"{old} goes after {load.streams} streams")
        live.remove(old)
        cluster.end(old)
        cluster.worker(number)
        live.append(f"worker{number}")
        until("all workers are ready", lambda: all(cluster.ready(name) for name in live))
    say(f"the head goes after {load.streams} streams")
    cluster.end("head")
    cluster.head()
    # The controller is back when it does what is wanted: one rank is enough from now on.
    cluster.place("head", 1).desired.write_text("ep_size = 1\ngroups = 1\n")
    until(
        "one rank is left",
        lambda: cluster.head_runs() and sum(cluster.ready(name) for name in live) == 1,
        patience=420,  # on a busy machine Ray's head is started again and again
    )
    time.sleep(2.0)


def main() -> int:
    """The last line is what was seen."""
    root, checkpoint = Path(sys.argv[1]), Path(sys.argv[2])
    loopback_up()
    manifests = render(values(checkpoint.name))
    service = Service()
    load = Load(service)
    with pods(Place(root, checkpoint, manifests)) as running:
        cluster = Cluster(root, checkpoint, manifests, running, service)
        cluster.redis()
        cluster.head()
        for number in (11, 12):
            cluster.worker(number)
        cluster.router(21)
        until("both workers are ready", lambda: all(cluster.ready(f"worker{number}") for number in (11, 12)))
        load.start()
        try:
            roll(cluster, load)
        finally:
            load.stop()
    seen = {"streams": load.streams, "failed": load.failed, "different": load.different, "hooks": cluster.hooks,
            "killed": cluster.killed, "longest_seconds": round(load.longest, 2)}  # fmt: skip
    print(json.dumps(seen))
    return 0


if __name__ == "__main__":
    sys.exit(main())
