"""What the ready values give a GPU to hold: the planner says that it fits, and that it is worth having."""

from __future__ import annotations

from pathlib import Path

import pytest

from shoal.cluster.checkpoint.presets import PRESETS
from shoal.cluster.plan.footprint import Footprint
from shoal.cluster.plan.gpu import parse_size
from shoal.cluster.plan.memory import BLOCK, rank_memory, sequences
from shoal.workers.kv.memory import plan_kv
from tests.chart.rendering import EXAMPLES, example
from tests.chart.templates.test_configmap import settings

GPU = {"gpt-oss-20b": "24GB", "amd-mi300x": "192GB"}
"""Memory of one, where it is not 80 GB."""
CONTEXT = 131072
ON_GPUS = [path for path in EXAMPLES if path.stem != "cpu-demo"]


@pytest.mark.parametrize("path", ON_GPUS, ids=lambda path: path.stem)
def test_the_kv_cache_of_ready_values_fits_and_holds_a_whole_context(path: Path) -> None:
    """Beside weights and a step's tensors, with a tenth of the memory left; the default would hold half a context."""
    values = example(path)
    worker, size = settings(**values).worker("m"), values["expertParallel"]["size"]
    model = Footprint(PRESETS[values["model"]["name"].removeprefix("gpt-oss-")].config())
    batch, tokens = worker.max_batch_size, worker.max_batch_tokens
    memory = parse_size(GPU.get(path.stem, "80GB"))
    room = rank_memory(model, memory, size, batch, step_tokens=tokens)
    assert 0 < worker.kv_memory <= room.kv_memory
    kv = plan_kv(model.config, block_size=BLOCK, batch_size=batch, batch_tokens=tokens, itemsize=model.kv_itemsize,
                 memory=worker.kv_memory)  # fmt: skip
    assert sequences(model, kv, CONTEXT) >= 1
    assert worker.kv_memory >= min(0.5 * room.kv_memory, 2**35), "most of what is free is left unused"


def test_the_default_does_not_hold_a_context() -> None:
    """Why they say a size: on a GPU the product's own default is for trying things out."""
    assert settings().worker("m").kv_tokens < CONTEXT
