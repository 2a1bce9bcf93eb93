"""Real servers for tests that need several: a cluster, and a service watched by a sentinel."""

from __future__ import annotations

import contextlib
import functools
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import redis

from shoal.cluster.embedded_redis import find_server

_SLOTS = 16384


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@dataclass
class Server:
    """One process that can be killed."""

    port: int
    process: subprocess.Popen[bytes]
    password: str | None = None
    command: tuple[str, ...] = ()

    def client(self) -> redis.Redis:
        """A plain client of it."""
        return redis.Redis(port=self.port, password=self.password, socket_timeout=2.0)

    def ask(self, *command: str | int) -> Any:
        """The answer to any command."""
        client: Any = self.client()
        return client.execute_command(*command)

    def pause(self) -> None:
        """SIGSTOP: it neither answers nor ends."""
        self.process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        """SIGCONT."""
        self.process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        """SIGKILL."""
        self.process.kill()
        self.process.wait()

    def start_again(self) -> None:
        """After a kill, with what it had kept."""
        self.process = subprocess.Popen(self.command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        holds_soon(lambda: bool(self.client().ping()))


@contextlib.contextmanager
def started(
    folder: Path, *options: str, port: int = 0, sentinel: str = "", password: str | None = None
) -> Iterator[Server]:
    """A server on a port of loopback; `sentinel` is the configuration of one."""
    port = port or free_port()
    folder.mkdir(parents=True, exist_ok=True)
    arguments = ["--port", str(port), "--bind", "127.0.0.1", "--dir", str(folder), "--save", "", *options]
    if sentinel:
        file = folder / "sentinel.conf"
        file.write_text(f"port {port}\nbind 127.0.0.1\ndir {folder}\n{sentinel}")
        arguments = [str(file), "--sentinel"]
    with (folder / "log").open("ab") as log:
        process = subprocess.Popen([str(find_server()), *arguments], stdout=log, stderr=log)
    server = Server(port, process, password, (str(find_server()), *arguments))
    try:
        holds_soon(lambda: bool(server.client().ping()))
        yield server
    finally:
        server.kill()


def holds_soon(holds: Callable[[], bool], seconds: float = 15.0) -> None:
    """Wait until it holds; errors of a server that is not up yet count as not."""
    give_up = time.monotonic() + seconds
    while True:
        with contextlib.suppress(redis.RedisError, OSError):
            if holds():
                return
        assert time.monotonic() < give_up, "the servers did not get there in time"
        time.sleep(0.02)


@contextlib.contextmanager
def cluster(folder: Path, nodes: int = 3) -> Iterator[list[Server]]:
    """A Redis Cluster of so many primaries, which share the slots."""
    with contextlib.ExitStack() as stack:
        servers, buses = [], [free_port() for _ in range(nodes)]
        for i, bus in enumerate(buses):
            options = ("--cluster-enabled", "yes", "--cluster-port", str(bus), "--cluster-node-timeout", "2000")
            servers.append(stack.enter_context(started(folder / str(i), *options, "--appendonly", "yes")))
        for i, (server, bus) in enumerate(zip(servers, buses, strict=True)):
            begin, end = i * _SLOTS // nodes, (i + 1) * _SLOTS // nodes - 1
            server.ask("CLUSTER", "ADDSLOTSRANGE", begin, end)
            server.ask("CLUSTER", "SET-CONFIG-EPOCH", i + 1)
            servers[0].ask("CLUSTER", "MEET", "127.0.0.1", server.port, bus)
        for server in servers:
            holds_soon(functools.partial(_knows_all, server, nodes))
        yield servers


def _knows_all(server: Server, nodes: int) -> bool:
    raw: Any = server.ask("CLUSTER", "INFO")
    return b"cluster_state:ok" in raw and b"cluster_known_nodes:%d\r" % nodes in raw


@dataclass
class Watched:
    """A primary, its replica, and the sentinel that watches them."""

    primary: Server
    replica: Server
    sentinel: Server


@contextlib.contextmanager
def watched(folder: Path, password: str) -> Iterator[Watched]:
    """The service `main`: a primary that asks for `password`, a replica, one sentinel that promotes after half a
    second."""
    login = (
        "--requirepass",
        password,
        "--masterauth",
        password,
        "--appendonly",
        "yes",
        "--repl-diskless-sync-delay",
        "0",
    )
    with contextlib.ExitStack() as stack:
        primary = stack.enter_context(started(folder / "primary", *login, password=password))
        follows = ("--replicaof", f"127.0.0.1 {primary.port}")
        replica = stack.enter_context(started(folder / "replica", *login, *follows, password=password))
        watching = [
            f"sentinel monitor main 127.0.0.1 {primary.port} 1",
            f"sentinel auth-pass main {password}",
            "sentinel down-after-milliseconds main 500",
            "sentinel failover-timeout main 3000",
        ]
        sentinel = stack.enter_context(started(folder / "sentinel", sentinel="\n".join(watching) + "\n"))

        def replicates() -> bool:
            known: Any = sentinel.ask("SENTINEL", "REPLICAS", "main")
            linked: Any = replica.client().info("replication")
            return len(known) == 1 and linked["master_link_status"] == "up"

        holds_soon(replicates)
        yield Watched(primary, replica, sentinel)
