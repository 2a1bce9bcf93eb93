"""`shoal doctor`: look a machine, and the cluster that is meant to run on it, over, and say what to do.

A check never raises: it finds something well, doubtful or wrong, and for the last two says what helps.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib.metadata
import os
import platform
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from shoal.cluster.client import health
from shoal.cluster.config import Settings
from shoal.cluster.errors import ClusterError, UnhealthyError

WELL, DOUBTFUL, WRONG = "ok", "warning", "error"
_MARK = {WELL: "[green]ok[/]     ", DOUBTFUL: "[yellow]warning[/]", WRONG: "[red]error[/]  "}
_SHARED = "/dev/shm"  # noqa: S108  # nothing is written there
_CLOCK_SECONDS = 1.0  # a difference to Redis' clock from which leases and tokens suffer
_SECONDS = 3.0  # for each answer
_IMPORT_SECONDS = 120.0  # for torch to be read from a slow disk


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check found."""

    check: str
    state: str
    """WELL, DOUBTFUL or WRONG."""
    words: str
    advice: str = ""


def run(settings: Settings, hashes: bool, console: Console) -> None:
    """Print every finding. Raises UnhealthyError when something is wrong."""
    wrong = 0
    for finding in findings(settings, hashes):
        console.print(f"{_MARK[finding.state]} {finding.check}: {finding.words}", highlight=False)
        if finding.advice:
            console.print(f"         {finding.advice}", style="dim", highlight=False)
        wrong += finding.state == WRONG
    if wrong:
        raise UnhealthyError(f"{wrong} thing(s) are wrong: see above")


def findings(settings: Settings, hashes: bool) -> Iterator[Finding]:
    """All checks; with `hashes` every byte of the checkpoint is compared with its manifest."""
    checks: tuple[Callable[[], Finding], ...] = (
        python,
        lambda: gpu(_here(settings), settings.worker(model="unused").device),
        torch,
        memory_for_exchange,
        compiler,
        lambda: ray(settings.cluster().ray_address),
        lambda: redis(settings.cluster().redis_url),
        lambda: clock(settings.cluster().redis_url),
        lambda: ports(settings),
        lambda: checkpoint(settings.cluster().model, hashes),
    )
    for check in checks:
        try:
            yield check()
        except ClusterError as error:
            yield Finding("settings", WRONG, str(error))


def python() -> Finding:
    """The interpreter's version."""
    version = platform.python_version()
    if (3, 11) <= sys.version_info[:2] <= (3, 12):
        return Finding("python", WELL, version)
    return Finding("python", WRONG, version, "use Python 3.11 or 3.12")


def gpu(wanted: int = 1, device: str = "auto") -> Finding:
    """The driver, and what it shows: a card per worker, of which `wanted` shall run here on `device`."""
    tool = shutil.which("nvidia-smi")
    if tool is None and wanted and device.startswith("cuda"):
        words = f"no nvidia-smi, but worker.device is {device}"
        return Finding("gpu", WRONG, words, "install the driver; in a container also NVIDIA's runtime for it")
    if tool is None:
        if Path("/dev/nvidiactl").exists():
            return Finding("gpu", DOUBTFUL, "there is a GPU but no nvidia-smi", "install the driver's utilities")
        return Finding("gpu", WELL, "none: workers compute on the CPU")
    query = [tool, "--query-gpu=name,driver_version,memory.total,compute_cap", "--format=csv,noheader"]
    done = subprocess.run(query, capture_output=True, text=True, timeout=20, check=False)
    if done.returncode:
        told = (done.stdout + done.stderr).strip().splitlines()
        return Finding("gpu", WRONG, told[-1] if told else "nvidia-smi fails", "the driver does not answer: reload it")
    cards = [line.strip() for line in done.stdout.splitlines() if line.strip()]
    old = [card for card in cards if float(card.rpartition(",")[2]) < 8.0]
    if old:
        return Finding("gpu", DOUBTFUL, "; ".join(cards), "compute capability below 8.0: no bfloat16 there")
    if len(cards) < wanted:
        words = f"{'; '.join(cards)}: {len(cards)} for {wanted} workers"
        return Finding("gpu", DOUBTFUL, words, "lower cluster.ep_size or cluster.groups, or set cluster.ray_address")
    return Finding("gpu", WELL, "; ".join(cards))


def torch() -> Finding:
    """Whether what computes sees the cards that the driver shows: its CUDA is younger than many a driver."""
    if shutil.which("nvidia-smi") is None:
        return Finding("torch", WELL, "not asked: no GPU")
    asked = "import torch; print(torch.version.cuda, torch.cuda.is_available() and torch.cuda.device_count())"
    done = subprocess.run(
        [sys.executable, "-c", asked], capture_output=True, text=True, timeout=_IMPORT_SECONDS, check=False
    )
    told = (done.stderr.strip().splitlines() or ["it cannot be imported"])[-1]
    if done.returncode:
        return Finding("torch", DOUBTFUL, told, "only a router runs here; pip install 'shoal[worker]'")
    version, seen = done.stdout.split()
    if version == "None":
        return Finding("torch", WRONG, "built without CUDA", "install its CUDA build: requirements/torch-cuda.lock")
    if seen == "False":
        advice = f"CUDA {version} needs a newer driver, or /dev/nvidia* are not let through"
        return Finding("torch", WRONG, f"CUDA {version} sees no card: {told}", advice)
    return Finding("torch", WELL, f"CUDA {version} sees {seen}")


def memory_for_exchange() -> Finding:
    """Ray and NCCL keep buffers there."""
    free = shutil.disk_usage(_SHARED).free / 2**30
    if free < 0.5:
        return Finding(_SHARED, WRONG, f"{free:.1f} GiB free", "mount it larger (docker: --shm-size=4g)")
    return Finding(_SHARED, WELL, f"{free:.1f} GiB free")


def compiler() -> Finding:
    """g++ builds the CPU kernels, gcc the launchers of the GPU's."""
    if shutil.which("g++") or shutil.which("c++"):
        return Finding("compiler", WELL, "g++ is there")
    return Finding("compiler", DOUBTFUL, "no g++", "install g++: without it the CPU path is many times slower")


def ray(address: str) -> Finding:
    """Whether workers can be placed from here: the library, and the control service of a cluster that was named."""
    try:
        version = importlib.metadata.version("ray")
    except importlib.metadata.PackageNotFoundError:
        return Finding("ray", DOUBTFUL, "not installed", "only a router runs here; pip install 'shoal[worker]'")
    if not address:
        return Finding("ray", WELL, f"{version}; `shoal serve` starts its own")
    if address == "auto":
        return Finding("ray", WELL, f"{version}; which cluster is for Ray to find")
    state = health(address, _SECONDS, service="")  # answered without Ray's token
    if state != "SERVING":
        advice = "check cluster.ray_address, that its head runs, and that a firewall lets its port through"
        return Finding("ray", WRONG, f"{version}; the control service at {address} is {state}", advice)
    return Finding("ray", WELL, f"{version}; the control service at {address} answers")


def redis(url: str) -> Finding:
    """Whether it answers, is new enough and keeps what it is told: of a cluster, each of its servers."""
    if not url:
        return Finding("redis", WELL, "none is set: `shoal serve` starts its own")

    from shoal.router.store.away import ABSENT
    from shoal.router.store.blocking import RedisUrlError, connect_blocking, each_server

    try:
        with contextlib.closing(connect_blocking(url, _SECONDS)) as client:
            found = [_of_redis(server.info()) for server in each_server(client)]
    except RedisUrlError as error:
        return Finding("redis", WRONG, f"its URL cannot be used: {error}", "correct cluster.redis_url")
    except ABSENT as error:
        return Finding(
            "redis", WRONG, f"does not answer: {type(error).__name__}", "check cluster.redis_url, and that it runs"
        )
    return next((finding for state in (WRONG, DOUBTFUL) for finding in found if finding.state == state), found[0])


def _of_redis(info: dict[str, Any]) -> Finding:
    """What one server says of itself."""
    version = str(info.get("redis_version", "0"))
    if int(version.partition(".")[0]) < 7:
        return Finding("redis", WRONG, version, "version 7.0 or newer is needed")
    if info.get("maxmemory", 0) and info.get("maxmemory_policy") != "noeviction":
        return Finding("redis", WRONG, f"evicts by {info['maxmemory_policy']}", "set maxmemory-policy to noeviction")
    if not info.get("aof_enabled"):
        return Finding("redis", DOUBTFUL, f"{version}, without append-only file", "sessions are lost when it restarts")
    return Finding("redis", WELL, version)


def clock(url: str) -> Finding:
    """Whether this machine's clock is Redis', or without a Redis at least kept by something."""
    advice = "run NTP (chrony, systemd-timesyncd) on every machine: leases and tokens suffer"
    apart = _apart(url) if url else None
    if apart is not None and apart > _CLOCK_SECONDS:
        return Finding("clock", WRONG, f"{apart:.1f} s off Redis'", advice)
    kept = _kept()
    if apart is None and not kept:
        return Finding("clock", DOUBTFUL, "the kernel says that nothing keeps it right", advice)
    told = [f"{apart * 1000:.0f} ms off Redis'"] if apart is not None else []
    return Finding("clock", WELL, "; ".join([*told, "kept by NTP" if kept else "not known to be kept by NTP"]))


def _apart(url: str) -> float | None:
    """Seconds between our clock and Redis'; None when it does not answer, which is told elsewhere."""

    from shoal.router.store.away import ABSENT
    from shoal.router.store.blocking import connect_blocking, one_server

    try:
        with contextlib.closing(connect_blocking(url, _SECONDS)) as client:
            server = one_server(client)
            began = time.time()
            seconds, micros = server.time()
            return float(abs(seconds + micros / 1e6 - (began + time.time()) / 2))
    except (*ABSENT, ValueError):
        return None


def _kept() -> bool:
    """Whether the kernel counts its clock as synchronized."""
    unsynchronized = 5  # TIME_ERROR of adjtimex(2)
    try:
        asked = ctypes.create_string_buffer(512)  # struct timex, all zero: change nothing
        return int(ctypes.CDLL(None).adjtimex(asked)) not in (-1, unsynchronized)
    except (OSError, AttributeError):
        return False


def ports(settings: Settings) -> Finding:
    """Whether a router, and this machine's workers, could listen where they shall."""
    router, worker = settings.router(model_dir="unused"), settings.worker(model="unused")
    taken = []
    wanted = {"port": (router.host, router.port), "http_port": (router.http_host, router.http_port),
              "metrics_port": (router.metrics_host, router.metrics_port)}  # fmt: skip
    taken += [f"router.{key} {port}" for key, (host, port) in wanted.items() if port > 0 and _taken(host, port)]
    ranks = _here(settings) or 1
    for key, first in (("first_port", worker.first_port), ("metrics_port", worker.metrics_port)):
        if first > 0:
            taken += [f"worker.{key} {port}" for port in range(first, first + ranks) if _taken("", port)]
    if taken:
        return Finding("ports", DOUBTFUL, f"taken: {', '.join(taken)}", "shoal runs here already, or choose others")
    return Finding("ports", WELL, "free")


def _here(settings: Settings) -> int:
    """Workers that shall run on this machine; 0: on whichever the Ray cluster that was named has."""
    config = settings.cluster()
    return 0 if config.ray_address else config.ranks


def _taken(host: str, port: int) -> bool:
    with socket.socket() as trial:
        trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            trial.bind((host, port))
        except OSError:
            return True
    return False


def checkpoint(model: str, hashes: bool) -> Finding:
    """Whether it can be read; with `hashes` whether every byte is what was published."""
    if not model:
        return Finding("checkpoint", DOUBTFUL, "none is named", "set cluster.model or pass --model DIR")
    if not os.path.isdir(model):
        return Finding(
            "checkpoint", WRONG, f"{model} is not a directory", "set cluster.model to the published directory"
        )
    try:
        from shoal.workers.checkpoint import CheckpointError, open_checkpoint
    except ModuleNotFoundError:
        return _for_a_router(Path(model))
    try:
        with open_checkpoint(model) as opened:
            shape = f"{opened.config.num_layers} layers, {opened.config.num_experts} experts"
    except CheckpointError as error:
        return Finding("checkpoint", WRONG, str(error), "fetch it again")
    if not hashes:
        return Finding("checkpoint", WELL, f"{shape}; --hashes compares every byte")
    done = subprocess.run(
        [sys.executable, "-m", "shoal.cluster.cli", "checkpoint", "verify", model],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    last = (done.stdout + done.stderr).strip().splitlines()[-1:]
    if done.returncode:
        return Finding("checkpoint", WRONG, "".join(last), "fetch what differs again")
    return Finding("checkpoint", WELL, f"{shape}; {''.join(last)}")


def _for_a_router(model: Path) -> Finding:
    """Where no worker can run: whether there is what a router reads."""
    missing = [name for name in ("config.json", "tokenizer.json") if not (model / name).is_file()]
    if missing:
        return Finding("checkpoint", WRONG, f"{model} lacks {' and '.join(missing)}", "fetch it again")
    return Finding("checkpoint", WELL, "what a router reads is there; weights are looked at where a worker could run")
