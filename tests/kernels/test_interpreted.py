"""Every Triton kernel runs in Triton's interpreter and equals its twin: the tests are in `interpreted/`."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

FOLDER = Path(__file__).parent / "interpreted"


def test_kernels_equal_their_twins_in_the_interpreter() -> None:
    """In processes of their own, two side by side: Triton decides once, when it is imported, to interpret and never to
    compile."""
    environment = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    files = sorted(map(str, FOLDER.glob("test_*.py")))
    running = [
        subprocess.Popen(
            [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *share],
            cwd=FOLDER.parents[2], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for share in (files[::2], files[1::2])
    ]  # fmt: skip
    said = [process.communicate(timeout=900)[0] for process in running]

    assert [process.returncode for process in running] == [0, 0], "\n".join(said)
