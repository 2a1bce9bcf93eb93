"""A process cut off from everybody on this machine: nftables drops every packet from and to its ports, silently."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import threading
from collections.abc import Iterator

import psutil

WHY_NOT = "" if os.geteuid() == 0 and shutil.which("nft") else "needs root and nft (package nftables)"
"""Why nobody can be cut off here; empty when one can."""


@contextlib.contextmanager
def cut_off(pid: int) -> Iterator[None]:
    """Until the end of the block; new ports of the process are cut off as it opens them."""
    table = f"shoal_cut_{os.getpid()}_{pid}"
    _nft(f"add table inet {table}")
    healed = threading.Event()
    watching = threading.Thread(target=_follow, args=(table, pid, healed))
    try:
        _nft(f"add set inet {table} ports {{ type inet_service; }}")
        _nft(f"add chain inet {table} in {{ type filter hook input priority 0; }}")
        _cut(table, pid, set())
        for way in ("sport", "dport"):
            _nft(f'add rule inet {table} in iif "lo" tcp {way} @ports drop')
        watching.start()
        yield
    finally:
        healed.set()
        if watching.ident is not None:
            watching.join()
        _nft(f"delete table inet {table}")


def _follow(table: str, pid: int, healed: threading.Event) -> None:
    known: set[int] = set()
    while not healed.wait(0.05):
        with contextlib.suppress(psutil.Error):
            _cut(table, pid, known)


def _cut(table: str, pid: int, known: set[int]) -> None:
    ports = {c.laddr.port for c in psutil.Process(pid).net_connections("tcp") if c.laddr} - known
    if ports:
        _nft(f"add element inet {table} ports {{ {', '.join(map(str, sorted(ports)))} }}")
        known |= ports


def _nft(command: str) -> None:
    subprocess.run(["nft", command], check=True, capture_output=True, timeout=10)
