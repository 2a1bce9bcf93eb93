"""`shoal.workers.alone`: an engine needs torch and numpy, and nothing of a cluster."""

from __future__ import annotations

import os
import subprocess
import sys

BLOCKED = ("ray", "redis", "grpc", "google", "llguidance", "structlog", "typer", "rich", "psutil", "safetensors")
CODE = f"""
import sys
for name in {BLOCKED!r}:
    sys.modules[name] = None  # importing it raises ImportError, as if it were not installed
from shoal.cluster.checkpoint.presets import PRESETS
from shoal.kernels import target
from shoal.workers.alone import EngineSizes, make_engine
from shoal.workers.checkpoint.synthetic import SyntheticWeights
from shoal.workers.engine.sequence import Sequence, SequenceKey, StopParams
from shoal.workers.experts.group_exchange import GroupExchange
from shoal.workers.model.sampling import SamplingParams

engine = make_engine(SyntheticWeights(PRESETS["tiny"].config()), target.choose("cpu"), EngineSizes())
wanted = SamplingParams(temperature=0.0), StopParams(max_tokens=3)
sequence = Sequence(SequenceKey("r"), 0, [1, 2, 3], 0, 0, *wanted)
engine.submit(sequence)
while engine.has_work:
    engine.step()
print(len(sequence.tokens))
"""


def test_an_engine_needs_no_cluster() -> None:
    """Neither Ray, gRPC, Redis nor a grammar library: a machine with torch measures and tests it."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    ran = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, env=environment)
    assert (ran.returncode, ran.stdout.strip()) == (0, "6"), ran.stderr
