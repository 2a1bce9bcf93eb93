"""`shoal redis`, as a process."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import redis

from shoal.cluster.commands import health
from shoal.cluster.errors import UnhealthyError

SHOAL = [sys.executable, "-m", "shoal.cluster.cli"]


def free_port() -> int:
    """A port that was free just now."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port


def test_it_keeps_what_it_was_given_behind_a_password(tmp_path: Path) -> None:
    """The process becomes the server; data is there again after it was killed, nobody enters without the password."""
    port, password = free_port(), tmp_path / "password"
    password.write_text("secret-word\n")
    data = tmp_path / "data"
    data.mkdir()
    command = [*SHOAL, "redis", "--port", str(port), "--data", str(data), "--password-file", str(password)]
    url = f"redis://:secret-word@127.0.0.1:{port}/0"
    for expected in (None, b"here"):
        server = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        try:
            wait_until_it_answers(url)
            client = redis.Redis.from_url(url)
            assert expected == client.get("fish")
            client.set("fish", "here")
            with pytest.raises(redis.AuthenticationError):
                redis.Redis(port=port).get("fish")
            assert "noeviction" == client.config_get("maxmemory-policy")["maxmemory-policy"]
            time.sleep(1.1)  # the append-only file is written every second
            assert (
                "redis" in Path(os.readlink(f"/proc/{server.pid}/exe")).name
                or "valkey" in Path(os.readlink(f"/proc/{server.pid}/exe")).name
            )
        finally:
            server.kill()
            server.wait()


def wait_until_it_answers(url: str) -> None:
    """By the probe that the chart uses."""
    give_up = time.monotonic() + 20
    while True:
        try:
            health.redis(url)
            return
        except UnhealthyError:
            assert time.monotonic() < give_up
            time.sleep(0.05)


@pytest.mark.parametrize("content", ["", "two words", 'a"quote'])
def test_a_password_that_would_not_work_is_refused(tmp_path: Path, content: str) -> None:
    """By the option's name, and it is not shown."""
    file = tmp_path / "password"
    file.write_text(content)
    done = subprocess.run([*SHOAL, "redis", "--password-file", str(file)], capture_output=True, text=True, check=False)
    assert 2 == done.returncode
    assert "--password-file" in done.stderr
    assert not content or content not in done.stderr
