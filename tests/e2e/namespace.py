"""Programs of this folder run in namespaces of their own: the chart's ports may be taken on this machine, and with the
program everything ends that it started."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
ALONE = ["unshare", "--net", "--pid", "--fork", "--kill-child", "--mount-proc"]
if os.geteuid() != 0:
    ALONE.insert(1, "--map-root-user")

needs_the_tools = pytest.mark.skipif(
    os.environ.get("SHOAL_TOOLS") != "required", reason="minutes of starting processes: `make chart`"
)


@contextlib.contextmanager
def in_a_network_of_its_own(module: str, model: Path, patience: float) -> Iterator[dict[str, Any]]:
    """Run `python -m module FOLDER MODEL` there; its last line is what it saw. Skips where no namespace can be made."""
    if shutil.which("unshare") is None or subprocess.run([*ALONE, "true"], check=False).returncode:
        pytest.skip("no network namespace can be made here, and the chart's own ports are needed")
    root = Path(tempfile.mkdtemp(prefix="walk"))  # short: names of sockets are at most 107 characters long
    command = [*ALONE, sys.executable, "-m", module, str(root), str(model)]
    program = root / "bin" / "shoal"  # as the installed one, whether or not this checkout is installed
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m shoal.cluster.cli "$@"\n')
    program.chmod(0o755)
    roots = ":".join(str(ROOT / name) for name in ("cluster", "kernels", "proto", "router", "workers", "."))
    path = f"{program.parent}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "PYTHONPATH": roots}
    try:
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=patience, check=False
        )  # fmt: skip
        logs = "\n".join(f"== {path.name}\n{path.read_text(errors='replace')[-1500:]}" for path in root.glob("*.log"))
        assert 0 == done.returncode, f"{done.stdout}\n{done.stderr[-3000:]}\n{logs}"
        print(done.stdout)
        yield json.loads(done.stdout.splitlines()[-1])
    finally:
        shutil.rmtree(root, ignore_errors=True)
