"""Collected only in a process that runs Triton's interpreter; test_interpreted.py starts one.

By hand: TRITON_INTERPRET=1 pytest tests/kernels/interpreted
"""

from __future__ import annotations

import os

collect_ignore_glob = [] if os.environ.get("TRITON_INTERPRET") == "1" else ["test_*.py"]
