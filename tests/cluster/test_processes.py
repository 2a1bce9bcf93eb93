"""Processes that must not outlive us: real ones, really killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable

import psutil

# A grandchild whose parent ends at once: an orphan. It prints its pid and sleeps.
ORPHAN = "import os,time; pid=os.fork(); print(pid, flush=True) if pid else (os.close(1), time.sleep(600))"

ADOPTER = f"""
import subprocess, sys
from shoal.cluster import processes
processes.adopt_orphans()
pid = int(subprocess.run([sys.executable, "-c", {ORPHAN!r}], stdout=subprocess.PIPE, text=True).stdout)
print([p.pid for p in processes.descendants()] == [pid], processes.kill_descendants() == [pid], flush=True)
print(processes.descendants(), flush=True)
"""

PARENT = '''
import os, subprocess, sys, time
child = """
import sys, time
from shoal.cluster.processes import die_with
die_with(int(sys.argv[1]))
print('up', flush=True)
time.sleep(600)
"""
process = subprocess.Popen([sys.executable, "-c", child, str(os.getpid())], stdout=subprocess.PIPE)
process.stdout.readline()
print(process.pid, flush=True)
time.sleep(600)
'''

INTERRUPTIBLE = """
import sys, time
from shoal.cluster.processes import Interrupted, interruptible
with interruptible(lambda: print("hard", flush=True), patience=0.3) as caught:
    try:
        try:
            print("ready", flush=True)
            time.sleep(60)
        except Interrupted as first:
            caught()
            print("first", first, flush=True)
            time.sleep(60)
    except Interrupted as second:
        caught()
        print("second", second, flush=True)
        time.sleep(float(sys.argv[1]))
"""

SWALLOWED = """
import time
from shoal.cluster.processes import Interrupted, interruptible
class Busy:
    def __del__(self):
        print("ready", flush=True)
        time.sleep(60)
with interruptible(lambda: None) as caught:
    try:
        Busy()
        print("swallowed", flush=True)
        time.sleep(60)
    except Interrupted as asked:
        caught()
        time.sleep(1.5)
        print("caught", asked, flush=True)
"""

HELD = """
import threading, time, types
from shoal.cluster.processes import Interrupted, interruptible
lock = threading.Lock()
def body():
    lock.acquire()
    print("ready", flush=True)
    time.sleep(0.5)
    lock.release()
hold = types.FunctionType(body.__code__, {**globals(), "__name__": "logging"})
with interruptible(lambda: None) as caught:
    try:
        hold()
        time.sleep(60)
    except Interrupted:
        caught()
        print("held" if lock.locked() else "free", flush=True)
"""

WAITING = """
import threading
from shoal.cluster.processes import Interrupted, interruptible
with interruptible(lambda: None) as caught:
    try:
        print("ready", flush=True)
        threading.Event().wait()
    except Interrupted:
        caught()
        print("interrupted", flush=True)
"""


def start(code: str, *arguments: str) -> subprocess.Popen[str]:
    """A Python process with a pipe to read from."""
    return subprocess.Popen([sys.executable, "-c", code, *arguments], stdout=subprocess.PIPE, text=True)


def line(process: subprocess.Popen[str]) -> str:
    """Its next line of output."""
    assert process.stdout is not None
    return process.stdout.readline().strip()


def becomes(holds: Callable[[], bool], within: float = 5.0) -> bool:
    """Whether it holds before the time is up."""
    give_up = time.monotonic() + within
    while time.monotonic() < give_up:
        if holds():
            return True
        time.sleep(0.02)
    return False


def gone(pid: int) -> bool:
    """Whether a process ended."""
    try:
        return bool(psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


def test_orphans_are_found_and_killed() -> None:
    """A grandchild whose parent ended is still below us, and nothing is below us afterwards."""
    process = start(ADOPTER)
    assert line(process) == "True True"
    assert line(process) == "[]"
    assert process.wait(10) == 0


def test_a_child_dies_with_its_parent() -> None:
    """SIGKILL of the parent, which can do nothing about it, ends the child too."""
    parent = start(PARENT)
    child = int(line(parent))
    assert not gone(child)
    parent.kill()
    parent.communicate()
    assert becomes(lambda: gone(child))


def test_a_child_whose_parent_is_already_gone_ends_at_once() -> None:
    """Between fork and prctl the parent may have died: then nobody would tell the child."""
    code = f"from shoal.cluster.processes import die_with; die_with({os.getpid()} + 1); print('alive')"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=10, check=False)
    assert (result.returncode, result.stdout) == (1, "")


def test_the_first_two_signals_interrupt() -> None:
    """The first interrupts the work, the second the orderly stop."""
    process = start(INTERRUPTIBLE, "0")
    assert line(process) == "ready"
    process.send_signal(signal.SIGINT)
    assert line(process) == "first SIGINT"
    process.send_signal(signal.SIGTERM)
    assert line(process) == "second SIGTERM"
    assert process.wait(10) == 0


def test_a_stop_that_hangs_after_the_second_signal_is_ended() -> None:
    """Patience ends: the hard stop runs and the process goes, whatever the main thread does."""
    process = start(INTERRUPTIBLE, "60")
    assert line(process) == "ready"
    process.send_signal(signal.SIGTERM)
    assert line(process) == "first SIGTERM"
    process.send_signal(signal.SIGTERM)
    assert line(process) == "second SIGTERM"
    assert line(process) == "hard"
    assert process.wait(10) == 128 + signal.SIGTERM


def test_an_interruption_that_python_dropped_comes_again() -> None:
    """An exception in a destructor, or in a hook of fork, is ignored; the wish to stop must not be. Once caught it
    comes no more, and nobody sees a traceback of it."""
    process = subprocess.Popen(
        [sys.executable, "-c", SWALLOWED], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert line(process) == "ready"
    process.send_signal(signal.SIGINT)
    assert line(process) == "swallowed"
    assert line(process) == "caught SIGINT"
    assert ("", "") == process.communicate(timeout=10)
    assert process.returncode == 0


def test_no_lock_of_a_log_is_left_taken() -> None:
    """A signal in the middle of a function that holds a lock interrupts once the lock is given back."""
    process = start(HELD)
    assert line(process) == "ready"
    process.send_signal(signal.SIGINT)
    assert line(process) == "free"
    assert process.wait(10) == 0


def test_a_wait_for_another_thread_is_interrupted() -> None:
    """What the main thread does most of the time while a cluster starts."""
    process = start(WAITING)
    assert line(process) == "ready"
    process.send_signal(signal.SIGINT)
    assert line(process) == "interrupted"
    assert process.wait(10) == 0
