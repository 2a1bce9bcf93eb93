"""An actor whose raylet was killed has nobody left to end it: Ray itself may take minutes to notice, or never does."""

from __future__ import annotations

import os
import threading
import time

PERIOD = 1.0
"""Seconds between two looks at the parent."""


def end_with_parent() -> None:
    """End this process soon after its parent process ends, whatever it is doing."""
    threading.Thread(target=_watch, args=(os.getppid(),), name="orphan-watch", daemon=True).start()


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(PERIOD)
    os._exit(1)
