"""Long contexts against transformers, both in chunks through their own KV caches, with the published rope.

python -m tests.workers.long_context 32768 110000
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

import torch

from shoal.cluster.checkpoint.make import make_checkpoint
from shoal.cluster.checkpoint.presets import Preset
from tests.workers.engines import make_engine, random_tokens
from tests.workers.test_model_oracle import logits_of, reference

LONG = Preset("long", 2, 64, 64, 4, 4, 2, vocab_size=300, sliding_window=128, experts_per_token=2)
CHUNK = 512


def deviation(path: Path, length: int) -> tuple[float, float]:
    """Largest absolute and relative difference of the logits over `length` tokens."""
    tokens = random_tokens(length, LONG.vocab_size, seed=length)
    engine = make_engine(path, kv_tokens=length + 64, batch_tokens=CHUNK, batch_size=1)
    chunks = [CHUNK] * (length // CHUNK) + ([length % CHUNK] if length % CHUNK else [])
    ours = logits_of(engine, tokens, chunks)
    theirs = reference(path)
    cache, rows = None, []
    with torch.inference_mode():
        for chunk in torch.split(torch.tensor([tokens]), CHUNK, dim=1):
            answer = theirs(chunk, past_key_values=cache, use_cache=True)
            cache = answer.past_key_values
            rows.append(answer.logits[0])
    expected = torch.cat(rows)
    difference = ours - expected
    return difference.abs().max().item(), (difference.norm() / expected.norm()).item()


def main() -> int:
    failed = 0
    with tempfile.TemporaryDirectory() as folder:
        path = make_checkpoint(Path(folder) / "model", LONG, seed=3)
        for length in map(int, sys.argv[1:]):
            start = time.monotonic()
            largest, relative = deviation(path, length)
            ok = largest < 1e-3 and relative < 1e-4
            failed += not ok
            print(f"{length} tokens: max abs {largest:.1e}, relative {relative:.1e}, {time.monotonic() - start:.0f} s",
                  "ok" if ok else "FAILED", flush=True)  # fmt: skip
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
