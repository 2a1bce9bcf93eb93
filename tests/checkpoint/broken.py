"""Ways to break a checkpoint, with the safetensors package as the writer that is not ours."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

from shoal.cluster.checkpoint.presets import Preset
from shoal.workers.checkpoint.error import CheckpointError

MICRO = Preset("micro", 2, 64, 32, 4, 4, 2, vocab_size=320, sliding_window=4, head_dim=8, experts_per_token=2)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)


def edit_tensors(
    directory: Path, change: Callable[[dict[str, Tensor]], object], name: str = "model.safetensors"
) -> None:
    """Rewrites a weight file after `change` has altered the tensors in place."""
    tensors = load_file(directory / name)
    change(tensors)
    save_file({key: value.contiguous() for key, value in tensors.items()}, directory / name)


def edit_json(path: Path, change: Callable[[dict[str, object]], object]) -> None:
    """Rewrites a JSON file after `change` has altered its object in place."""
    table = json.loads(path.read_text())
    change(table)
    path.write_text(json.dumps(table))


def header_of(path: Path) -> bytes:
    """The JSON header of a safetensors file."""
    content = path.read_bytes()
    return content[8 : 8 + int.from_bytes(content[:8], "little")]


def error_of(call: Callable[[], object]) -> CheckpointError | None:
    """What `call` raised; None when it did not. Any other exception is a failure."""
    try:
        call()
    except CheckpointError as error:
        return error
    return None
