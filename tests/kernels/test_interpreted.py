"""Every Triton kernel runs in Triton's interpreter and equals its twin: the tests are in `interpreted/`."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

FOLDER = Path(__file__).parent / "interpreted"


def test_kernels_equal_their_twins_in_the_interpreter() -> None:
    """In a process of their own: Triton decides once, when it is imported, to interpret and never to compile."""
    environment = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(FOLDER)]

    done = subprocess.run(command, cwd=FOLDER.parents[2], env=environment, capture_output=True, text=True, timeout=900)

    assert done.returncode == 0, done.stdout + done.stderr
