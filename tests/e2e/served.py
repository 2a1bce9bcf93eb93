"""`shoal serve` as a process of its own, and what tests ask of it."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import grpc
import psutil

from shoal.cluster import runfile
from shoal.cluster.commands.status import read_registry
from shoal.cluster.errors import NotRunningError
from shoal.cluster.runfile import RunFile
from shoal.proto.v1 import inference_pb2 as pb
from shoal.proto.v1 import inference_pb2_grpc, worker_pb2, worker_pb2_grpc

OWN_DISK = os.geteuid() == 0
"""Whether a file system of its own can be made here."""

START = 120.0
"""Seconds that a busy machine may take from the command to the first request served."""


def environment(**more: str) -> dict[str, str]:
    """Ours without settings, for a cluster that keeps to this machine and to one thread per worker."""
    quiet = {"RAY_USAGE_STATS_ENABLED": "0", "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
    clean = {key: value for key, value in os.environ.items() if not key.startswith("SHOAL_")}
    return {**clean, **quiet, **more}


def becomes(holds: Callable[[], bool], within: float) -> bool:
    """Whether it holds before the time is up."""
    give_up = time.monotonic() + within
    while time.monotonic() < give_up:
        if holds():
            return True
        time.sleep(0.05)
    return holds()


class Served:
    """One running `shoal serve` on two expert-parallel workers."""

    def __init__(
        self, model: Path, state_dir: Path, more_settings: Sequence[str] = (), **more_environment: str
    ) -> None:
        self.state_dir = state_dir
        state_dir.mkdir(parents=True, exist_ok=True)
        self.log = state_dir / "serve.log"
        settings = [
            "worker.kv_tokens=8192",
            "router.http_port=0",
            "router.metrics_port=0",
            "cluster.log_level=debug",
            "worker.threads=1",
            *more_settings,
        ]
        self._environment = environment(**more_environment)
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [
                    sys.executable, "-m", "shoal.cluster.cli", "serve", "--model", str(model), "--ep-size", "2",
                    "--port", "0", "--state-dir", str(state_dir), *(f"--set={setting}" for setting in settings),
                ],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=self._environment, start_new_session=True,
            )  # fmt: skip
        self._seen: dict[int, psutil.Process] = {}

    def wait_until_ready(self) -> RunFile:
        """Where everything is, once the first request can be served."""
        assert becomes(lambda: self.running() is not None or self.process.poll() is not None, START), self.output()
        run = self.running()
        assert run is not None, self.output()
        self.look()
        return run

    def wait_until_it_says(self, words: str) -> None:
        """Until its log has these words."""
        assert becomes(lambda: words in self.output(), START), self.output()
        self.look()

    def running(self) -> RunFile | None:
        """Its run file, None while it is not up."""
        try:
            return runfile.read(self.state_dir)
        except NotRunningError:
            return None

    def output(self) -> str:
        """Everything that it printed."""
        return self.log.read_text(errors="replace")

    def shoal(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Another `shoal` command about this cluster."""
        command = [sys.executable, "-m", "shoal.cluster.cli", *arguments, "--state-dir", str(self.state_dir)]
        return subprocess.run(command, env=self._environment, capture_output=True, text=True, timeout=90, check=False)

    def look(self) -> int:
        """Remember every process below it, by pid and time of birth; how many there are now."""
        try:
            below = psutil.Process(self.process.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            return 0
        self._seen |= {process.pid: process for process in below}
        return len(below)

    def process_named(self, words: str) -> psutil.Process:
        """The one process below it, alive, whose command line has these words."""
        found = []
        for process in psutil.Process(self.process.pid).children(recursive=True):
            with suppress(psutil.Error):
                if process.status() != psutil.STATUS_ZOMBIE and words in " ".join(process.cmdline()):
                    found.append(process)
        assert len(found) == 1, f"{len(found)} processes are {words!r}"
        return found[0]

    def left(self, besides: str = "") -> list[str]:
        """Command lines, without the word `besides`, of processes that were once below it and still live."""
        alive = []
        for process in self._seen.values():
            try:
                if process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
                    alive.append(" ".join(process.cmdline()).strip()[:100])
            except psutil.NoSuchProcess:
                continue
        return [line for line in alive if not besides or besides not in line]

    def leaves_nothing(self, within: float, besides: str = "") -> bool:
        """Whether all processes that were ever seen below it are gone in time."""
        assert self._seen, "nothing was ever seen below it"
        return becomes(lambda: not self.left(besides), within)

    def kill(self) -> None:
        """End it whatever happened, for the end of a test that failed."""
        self.look()
        for process in [psutil.Process(self.process.pid)] if self.process.poll() is None else []:
            process.kill()
        self.process.wait(10)
        for process in self._seen.values():
            if process.is_running():
                process.kill()


class Client:
    """A client of the public API."""

    def __init__(self, run: RunFile) -> None:
        self.run = run
        self._channel = grpc.insecure_channel(run.router)
        self._inference = inference_pb2_grpc.InferenceServiceStub(self._channel)
        self._sessions = inference_pb2_grpc.SessionServiceStub(self._channel)

    def generate(self, seed: int, tokens: int, timeout: float = 60.0) -> Any:
        """A call that generates exactly so many tokens of noise."""
        request = pb.GenerateRequest(
            text=f"A shoal of {seed} fish", sampling=pb.Sampling(seed=seed),
            limits=pb.Limits(max_tokens=tokens, ignore_eos=True),
        )  # fmt: skip
        return self._inference.Generate(request, timeout=timeout)

    def ids(self, seed: int, tokens: int) -> list[int]:
        """The tokens of one whole generation."""
        events = list(self.generate(seed, tokens))
        assert events[-1].WhichOneof("event") == "done", events
        return [token for event in events for token in event.tokens.ids]

    def chat(self, text: str, session: str, **fields: Any) -> list[pb.ChatResponse]:
        """Every event of one turn."""
        request = pb.ChatRequest(
            messages=[pb.Message(role=pb.ROLE_USER, content=text)], session_id=session,
            sampling=pb.Sampling(seed=3), limits=pb.Limits(max_tokens=12), **fields,
        )  # fmt: skip
        return list(self._inference.Chat(request, timeout=60))

    def session(self, name: str) -> pb.GetSessionResponse:
        """A session with everything said."""
        return self._sessions.GetSession(pb.GetSessionRequest(session_id=name), timeout=10)

    def workers(self) -> list[worker_pb2.GetStatusResponse]:
        """What every rank says of itself."""
        problem, entries = read_registry(self.run.redis_url)
        assert not problem, problem
        statuses = []
        for worker in entries[0].workers:
            with grpc.insecure_channel(worker.address) as channel:
                stub = worker_pb2_grpc.WorkerServiceStub(channel)
                statuses.append(stub.GetStatus(worker_pb2.GetStatusRequest(), timeout=10))
        return statuses

    def idle(self) -> bool:
        """Whether no rank has anything to do."""
        return all(status.running == status.waiting == 0 for status in self.workers())

    def close(self) -> None:
        """Close the connection."""
        self._channel.close()


@contextmanager
def serving(
    model: Path, state_dir: Path, more_settings: Sequence[str] = (), **more_environment: str
) -> Iterator[Served]:
    """A cluster that is being started; whatever is left of it at the end is killed."""
    served = Served(model, state_dir, more_settings, **more_environment)
    try:
        yield served
    finally:
        served.kill()


@contextmanager
def small_disk(folder: Path) -> Iterator[Path]:
    """The folder as a file system of its own, where that can be made, so that it can be filled."""
    folder.mkdir(parents=True, exist_ok=True)
    if not OWN_DISK:
        yield folder
        return
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=192m,mode=700", "tmpfs", str(folder)], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)
