"""`shoal redis`: the Redis of a small installation as a process of its own, reachable over the network.

This process becomes the server, so signals and exit status are the server's. `shoal serve` has one of its own kind
(`embedded_redis.py`), which nobody else can reach.
"""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

from shoal.cluster.embedded_redis import VERSION_FLOOR, EmbeddedRedisError, find_server, server_version
from shoal.cluster.errors import ConfigError, StartError


@dataclass(frozen=True, slots=True)
class Options:
    """What the command line said."""

    host: str
    port: int
    data: Path
    password_file: Path
    max_memory_mib: int


def run(options: Options) -> None:
    """Become the server. Raises ConfigError for a password that cannot be read or is empty, StartError without one."""
    try:
        password = options.password_file.read_text().strip()
    except OSError as error:
        raise ConfigError(f"--password-file {options.password_file}: {error.strerror}") from error
    if not password or any(letter.isspace() or letter in "\"'\\" for letter in password):
        raise ConfigError(f"--password-file {options.password_file} must hold one word without quotes")
    try:
        binary = find_server()
        version = server_version(binary)
    except EmbeddedRedisError as error:
        raise StartError(str(error)) from error
    if version[:2] < VERSION_FLOOR:
        raise StartError(f"{binary} is version {version}, at least {VERSION_FLOOR} is needed")
    if not os.access(options.data, os.W_OK):
        raise StartError(f"--data {options.data} is not a directory that this user may write to")
    configuration, path = tempfile.mkstemp(prefix="redis-", suffix=".conf")  # private to this user
    with os.fdopen(configuration, "w") as file:
        file.writelines(f"{key} {value}\n" for key, value in settings(options, password).items())
    os.execv(binary, [str(binary), path])  # noqa: S606  # without a shell is meant


def settings(options: Options, password: str) -> dict[str, str]:
    """The server's configuration: everything is kept, nothing is evicted, nobody enters without the password."""
    return {
        "bind": options.host,
        "port": str(options.port),
        "requirepass": password,
        "dir": str(options.data),
        "daemonize": "no",
        "appendonly": "yes",
        "appendfsync": "always",  # see `embedded_redis.py`
        "save": '""',
        "maxmemory": f"{options.max_memory_mib}mb",
        "maxmemory-policy": "noeviction",
        "tcp-keepalive": "60",
    }
