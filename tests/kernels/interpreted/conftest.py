"""Collected only in a process that runs Triton's interpreter; test_interpreted.py starts one.

By hand: TRITON_INTERPRET=1 pytest tests/kernels/interpreted
"""

from __future__ import annotations

import os

if os.environ.get("TRITON_INTERPRET") == "1":
    from tests.kernels import ordered_dot

    ordered_dot.install()
    collect_ignore_glob: list[str] = []
else:
    collect_ignore_glob = ["test_*.py"]
