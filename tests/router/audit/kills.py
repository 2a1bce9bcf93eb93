"""A writer of an audit trail is killed again and again: no record that was acknowledged is missing, the chain verifies.

python -m tests.router.audit.kills 50      the long form, as `make chaos` runs it; adds rows to the record `chaos`
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

from shoal.router.audit.chain import verify
from shoal.router.audit.file import AuditFile, read_head
from tests.bench.record import Row, add

KEY = b"k" * 32
_WRITER = """
import sys
from pathlib import Path
from shoal.router.audit.file import AuditFile
file = AuditFile(Path(sys.argv[1]), b"k" * 32)
n = file.head.number
while True:
    file.append([{"kind": "called", "n": n + i} for i in range(3)])
    n += 3
    print(n, flush=True)
"""


def run(path: Path, kills: int, seed: int) -> int:
    """Kill that many writers, one after the other. Returns the records that are there. Raises AssertionError."""
    draw = random.Random(seed)
    environment, end = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}, 0
    for _ in range(kills):
        process = subprocess.Popen(
            [sys.executable, "-c", _WRITER, str(path)], stdout=subprocess.PIPE, text=True, env=environment
        )
        assert process.stdout is not None
        for _ in range(draw.randrange(1, 60)):
            process.stdout.readline()
        process.send_signal(signal.SIGKILL)
        acknowledged = max(int(n) for n in process.stdout.read().split("\n")[:-1] or ["0"])
        process.wait()
        head, problems = verify(path.read_bytes().splitlines(keepends=True), KEY, read_head(path))
        assert problems == [], problems
        assert head.number >= acknowledged, f"{acknowledged} records were acknowledged, {head.number} are there"
        end = head.number
    with path.open("ab") as file:
        file.write(b'{"half a li')
    AuditFile(path, KEY).append([{"kind": "called"}])
    assert verify(path.read_bytes().splitlines(keepends=True), KEY, read_head(path))[1] == []
    return end


def main() -> None:
    """The long form."""
    kills = int(sys.argv[1]) if len(sys.argv) > 1 else 50
    with tempfile.TemporaryDirectory() as folder:
        records = run(Path(folder) / "r.jsonl", kills, seed=1)
    print(f"{kills} kills, {records} records, none missing, the chain verifies")
    add("chaos", [
        Row(f"audit: {kills} kills of the writer, records missing", 0, f"of {records}", goal=0, met=True),
    ])  # fmt: skip


if __name__ == "__main__":
    main()
