"""What a router must not need."""

from __future__ import annotations

import os
import subprocess
import sys


def test_a_router_needs_neither_torch_nor_ray() -> None:
    """Importing the whole router, as its process does, loads none of the heavy libraries."""
    code = (
        "import sys, shoal.router.server, shoal.router.fleet.scripted_worker\n"
        "print(*({'torch', 'ray', 'triton', 'transformers', 'numpy'} & set(sys.modules)))"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)

    assert ran.stdout.strip() == ""
