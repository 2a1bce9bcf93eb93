"""Processes that must not outlive us: what the kernel and /proc offer for that on Linux.

Three nets, each for the case that the one before it did not run:

1. the orderly stop;
2. `kill_descendants`: everything below this process, found because orphans are handed to us (`adopt_orphans`);
3. the parent-death signal: a child dies with us even after SIGKILL (`die_with`, `tied`, and Ray does the same).
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import psutil

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36

# Runs between fork and exec. A separate interpreter, not `preexec_fn`: Python code between fork and exec may deadlock
# in a process with threads. The parent may have died before prctl: then getppid differs and nothing is started.
_LAUNCHER = """
import ctypes, os, sys
parent, number, program = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
if sys.platform == "linux":
    PR_SET_PDEATHSIG = 1
    if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, number, 0, 0, 0) != 0:
        sys.exit("prctl(PR_SET_PDEATHSIG) failed with errno %d" % ctypes.get_errno())
    if os.getppid() != parent:
        sys.exit("the parent is gone")
os.execv(program, [program, *sys.argv[4:]])
"""


_HOLDS_LOCKS = "logging"
"""A module whose functions, cut short between two lines, leave a lock taken. They never wait for long, as those of
`threading` do, which must be interrupted."""


class Interrupted(BaseException):  # like KeyboardInterrupt: not an error, and no `except Exception` may eat it
    """A signal asked this process to stop."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


def adopt_orphans() -> None:
    """Processes whose parent dies become ours instead of init's, so that `kill_descendants` finds them."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def die_with(parent: int) -> None:
    """Have the kernel kill this process when `parent` (its parent, or rather the thread that forked it) ends."""
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it ended before the kernel knew
        os._exit(1)


def tied(command: Sequence[str], number: signal.Signals) -> list[str]:
    """A command whose process, a child of this one, gets the signal when the thread that started it ends."""
    return [sys.executable, "-I", "-S", "-c", _LAUNCHER, str(os.getpid()), str(int(number)), *command]


def is_alive(pid: int) -> bool:
    """Whether a process runs. A zombie does not: on some machines nobody reaps orphans."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False
    return stat.rsplit(")", 1)[1].split()[0] not in ("Z", "X")


def descendants() -> list[psutil.Process]:
    """Every living process below this one."""
    import psutil  # here, because a router's image has none

    alive = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            if process.status() != psutil.STATUS_ZOMBIE:
                alive.append(process)
    return alive


def kill_descendants(timeout: float = 5.0, keep: Iterable[int] = ()) -> list[int]:
    """SIGKILL everything below this process, but for `keep`, until nothing is left; returns the pids that were there.

    In rounds, because a killed parent may have been starting another child.
    """
    import psutil

    killed: list[int] = []
    kept = set(keep)
    give_up = time.monotonic() + timeout
    while (alive := [p for p in descendants() if p.pid not in kept]) and time.monotonic() < give_up:
        for process in alive:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
                killed.append(process.pid)
        psutil.wait_procs(alive, timeout=0.5)
    return sorted(set(killed))


@contextlib.contextmanager
def interruptible(hard_stop: Callable[[], Any], patience: float = 8.0) -> Iterator[Callable[[], None]]:
    """SIGINT, SIGTERM and SIGHUP raise Interrupted in the main thread; from the third on they are ignored.

    The first asks for an orderly stop, the second interrupts that. Should the second not have led to an end within
    `patience` seconds, `hard_stop` runs on a thread of its own and the process ends with 128 + the signal's number.

    Yields a function to call once Interrupted was caught. Until then it is raised again every second: Python drops
    an exception that arises in a destructor or in a hook of fork, where a process that starts others spends its time
    (and would print a traceback of it). Inside `logging`, which holds locks, it is not raised, but a second later.
    """
    seen = 0
    pending: int | None = None
    main = threading.get_ident()
    report = sys.unraisablehook

    def dropped(unraisable: sys.UnraisableHookArgs) -> None:
        if not isinstance(unraisable.exc_value, Interrupted):
            report(unraisable)

    def interrupt(number: int, frame: FrameType | None) -> None:
        if frame is None or frame.f_globals.get("__name__") != _HOLDS_LOCKS:
            raise Interrupted(number)

    def handle(number: int, frame: FrameType | None) -> None:
        nonlocal seen, pending
        seen += 1
        if seen > 2:
            return
        pending = number
        threading.Thread(target=remind, daemon=True).start()
        if seen == 2:
            threading.Thread(target=give_up, args=(number,), daemon=True).start()
        interrupt(number, frame)

    def handle_again(_: int, frame: FrameType | None) -> None:
        if pending is not None:
            interrupt(pending, frame)

    def remind() -> None:
        while True:
            time.sleep(1.0)
            if pending is None:
                return
            signal.pthread_kill(main, signal.SIGUSR2)

    def give_up(number: int) -> None:
        time.sleep(patience)
        hard_stop()
        os._exit(128 + number)

    def caught() -> None:
        nonlocal pending
        pending = None

    asked = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.getsignal(number) for number in asked}
    for number in asked:
        signal.signal(number, handle)
    signal.signal(signal.SIGUSR2, handle_again)  # and stays so: a late reminder must not meet the default, which kills
    sys.unraisablehook = dropped
    try:
        yield caught
    finally:
        caught()
        sys.unraisablehook = report
        for number, handler in before.items():
            signal.signal(number, handler)


def _prctl(option: int, value: int) -> None:
    if sys.platform == "linux":
        result = ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0)
        assert result == 0, f"prctl({option}) failed with errno {ctypes.get_errno()}"
