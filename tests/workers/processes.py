"""Workers as processes of their own, so that they can be killed and stopped, and the little of a controller that tests
need: tell some of them to be a group."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from shoal.cluster.placement import even_placement
from shoal.workers.config import WorkerConfig
from shoal.workers.experts.group import EpochReport, GroupSpec, Member, WorkerFacts
from shoal.workers.experts.placement import Placement
from shoal.workers.experts.rendezvous import RendezvousServer

_server = multiprocessing.get_context("forkserver")  # forks from a process that has torch already
_server.set_forkserver_preload(["shoal.workers.actor"])
_epochs = itertools.count(1)


def _serve(config: WorkerConfig, pipe: Connection) -> None:
    """Calls come as (number, method, arguments) and are answered as (number, result or exception), in any order."""
    from shoal.workers.worker import Worker

    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    worker, lock = Worker(config), threading.Lock()

    def answer(number: int, method: str, arguments: tuple[Any, ...]) -> None:
        result: Any
        try:
            result = getattr(worker, method)(*arguments)
        except Exception as error:
            result = error
        with lock:
            pipe.send((number, result))

    while True:
        try:
            call = pipe.recv()
        except EOFError:
            os._exit(0)
        threading.Thread(target=answer, args=call, daemon=True).start()


class WorkerProcess:
    """One worker. Its calls return futures, for all members of a group are called at once."""

    def __init__(self, config: WorkerConfig) -> None:
        self._pipe, theirs = _server.Pipe()
        self.process = _server.Process(target=_serve, args=(config, theirs), daemon=True)
        self.process.start()
        theirs.close()
        self._calls: dict[int, Future[Any]] = {}
        self._numbers = itertools.count()
        threading.Thread(target=self._listen, daemon=True).start()
        self.facts: WorkerFacts = self.call("prepare").result(60)

    def call(self, method: str, *arguments: Any) -> Future[Any]:
        """Call a method of the worker; the future fails with what it raised, or with EOFError when it is dead."""
        number, future = next(self._numbers), Future[Any]()
        self._calls[number] = future
        try:
            self._pipe.send((number, method, arguments))
        except OSError:
            future.set_exception(EOFError("the worker is dead"))
        return future

    def signal(self, number: int) -> None:
        """Send its process a signal."""
        os.kill(self.facts.pid, number)

    def kill(self) -> None:
        """kill -9."""
        self.process.kill()
        self.process.join(10)

    def _listen(self) -> None:
        try:
            while True:
                number, result = self._pipe.recv()
                future = self._calls.pop(number)
                if not future.set_running_or_notify_cancel():
                    continue  # nobody waits any more
                future.set_exception(result) if isinstance(result, Exception) else future.set_result(result)
        except (EOFError, OSError):
            for future in list(self._calls.values()):
                if not future.done():
                    future.set_exception(EOFError("the worker is dead"))


class Crew:
    """Workers by name, and one epoch after another among some of them."""

    def __init__(self, model: Path, **settings: Any) -> None:
        self._settings = {"model": str(model), "kv_tokens": 4096, "collective_timeout": 2.0, **settings}
        self.workers: dict[str, WorkerProcess] = {}
        self._store: RendezvousServer | None = None

    def hire(self, *names: str) -> None:
        """Start and prepare workers."""
        for name in names:
            self.workers[name] = WorkerProcess(WorkerConfig(worker_id=name, **self._settings))

    def address(self, name: str) -> str:
        """Where its gRPC server listens."""
        return self.workers[name].facts.address

    def spec(self, *names: str, placement: Placement | None = None) -> GroupSpec:
        """A new epoch with these members."""
        self._store = RendezvousServer("127.0.0.1")
        facts = [self.workers[name].facts for name in names]
        return GroupSpec(
            "g0", next(_epochs), "127.0.0.1", self._store.port,
            tuple(Member(rank, f.worker_id, f.address) for rank, f in enumerate(facts)),
            placement or even_placement(facts[0].num_layers, facts[0].num_experts, len(names)),
            tuple(worker.facts.address for worker in self.workers.values()),
        )  # fmt: skip

    def begin(self, spec: GroupSpec, together: bool) -> list[Future[EpochReport]]:
        """Tell all its members at once."""
        return [self.workers[m.worker_id].call("reconfigure", spec, together) for m in spec.members]

    def form(self, *names: str, together: bool = True, placement: Placement | None = None) -> list[EpochReport]:
        """A new epoch with these members, done."""
        return [report.result(60) for report in self.begin(self.spec(*names, placement=placement), together)]


@contextmanager
def crew(model: Path, *names: str, **settings: Any) -> Iterator[Crew]:
    """Workers that are killed at the end, stopped ones too."""
    hired = Crew(model, **settings)
    try:
        hired.hire(*names)
        yield hired
    finally:
        for worker in hired.workers.values():
            if worker.process.is_alive():
                worker.signal(signal.SIGCONT)
                worker.kill()


def states(hired: Crew, names: Sequence[str]) -> list[str]:
    """What the loops of these workers do."""
    return [hired.workers[name].call("status").result(10)["state"] for name in names]
