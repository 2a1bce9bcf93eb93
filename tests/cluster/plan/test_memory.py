"""`shoal.cluster.plan.memory` and `fleet`: what fits, in agreement with what workers really hold."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from shoal.cluster.checkpoint.presets import PRESETS
from shoal.cluster.placement import even_placement
from shoal.cluster.plan.fleet import Wish, best, layouts
from shoal.cluster.plan.footprint import Footprint
from shoal.cluster.plan.gpu import GIB, GPUS, parse_size
from shoal.cluster.plan.memory import largest_batch, rank_memory, sequences, weight_bytes
from shoal.workers.checkpoint.synthetic import SyntheticWeights
from shoal.workers.kv.memory import plan_kv
from shoal.workers.model.kv_cache import allocate
from shoal.workers.model.weights import load_dense, load_experts

MODELS = {name: Footprint(PRESETS[name].config()) for name in ("20b", "120b")}
CPU = torch.device("cpu")

# GiB of weights on each rank: dense and both embeddings everywhere, experts shared.
WEIGHTS = {
    "20b": {1: 12.82, 2: 8.08, 4: 5.72, 8: 4.53},
    "120b": {1: 60.77, 2: 32.37, 4: 18.16, 8: 11.06},
}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("ranks", [1, 2, 4, 8])
def test_weights_of_a_rank(name: str, ranks: int) -> None:
    """20b and 120b at expert-parallel size 1, 2, 4, 8: the published sizes, split by experts alone."""
    model = MODELS[name]
    found = weight_bytes(model, ranks)
    assert WEIGHTS[name][ranks] == round(found / GIB, 2)
    dense = model.checkpoint_bytes - model.experts_bytes
    assert dense + model.experts_bytes // ranks == found - model.widened_bytes
    assert found + 3 * model.config.num_layers * model.expert_bytes == weight_bytes(model, ranks, spare_slots=3)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("ranks", [1, 2, 4, 8])
@pytest.mark.parametrize("batch", [1, 64, 256])
def test_kv_is_the_workers_own_plan(name: str, ranks: int, batch: int) -> None:
    """Given the memory that the plan names, a worker makes the pools that the plan counted with, within the budget."""
    model, memory = MODELS[name], 80 * 10**9
    held = rank_memory(model, memory, ranks, batch)
    assert held.kv is not None
    worker = plan_kv(
        model.config, block_size=16, batch_size=batch, batch_tokens=8192, itemsize=2, memory=held.kv_memory
    )
    assert worker == held.kv
    assert held.weights + held.workspace + held.kv.bytes_total <= int(memory * 0.9) + model.kv_token_bytes * 16 * 18
    for context in (1024, 8192, 32768):
        assert sequences(model, held.kv, context) * -(-context // 16) <= held.kv.num_full


def tensors(value: object) -> Iterator[torch.Tensor]:
    """Every tensor in nested dataclasses and tuples."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, tuple):
        for item in value:
            yield from tensors(item)
    elif dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            yield from tensors(getattr(value, field.name))


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_weights_are_what_a_worker_loads(ranks: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Byte for byte, where weights are kept as published."""
    monkeypatch.setenv("SHOAL_KERNELS", "torch")
    config = PRESETS["tiny"].config()
    source, placement = SyntheticWeights(config), even_placement(config.num_layers, config.num_experts, ranks)
    loaded = [load_dense(source, CPU)]
    experts = [load_experts(source, n, placement.experts_of(n, 0), CPU) for n in range(config.num_layers)]
    held = sum(tensor.nbytes for part in (*loaded, *experts) for tensor in tensors(part))
    assert held == weight_bytes(Footprint(config), ranks)


def test_kv_is_what_a_worker_allocates() -> None:
    """The cache's tensors have the bytes of the plan."""
    model = Footprint(PRESETS["tiny"].config())
    held = rank_memory(model, 400 * 10**6, 1, 4, step_tokens=64)
    assert held.kv is not None
    cache = allocate(model.config, held.kv, torch.bfloat16, CPU)
    assert sum(tensor.nbytes for tensor in (*cache.keys, *cache.values)) == held.kv.bytes_total


@given(memory=st.integers(66, 200), context=st.integers(1, 131072), ranks=st.sampled_from([1, 2, 4, 8]))
def test_the_largest_batch_fits_and_one_more_does_not(memory: int, context: int, ranks: int) -> None:
    """By the plan of that batch itself."""
    model = MODELS["120b"]
    most = largest_batch(model, memory * GIB, ranks, context)

    def holds(batch: int) -> int:
        held = rank_memory(model, memory * GIB, ranks, batch, step_tokens=max(8192, batch))
        return sequences(model, held.kv, context)

    assert most == 0 or holds(most) >= most
    assert most == 4096 or holds(most + 1) < most + 1


def test_sliding_layers_keep_their_window_alone() -> None:
    """A long context costs full layers a block per 16 tokens, sliding ones ten blocks in all."""
    model = MODELS["20b"]
    kv = plan_kv(model.config, block_size=16, batch_size=8, batch_tokens=512, itemsize=2, memory=8 * GIB)
    assert sequences(model, kv, 65536) == min(kv.num_full // 4096, kv.num_sliding // 10)


def test_a_model_that_is_too_large_says_by_how_much() -> None:
    """One 24 GB card has no room for 120b; eight have."""
    model, memory = MODELS["120b"], parse_size("24GB")
    held = rank_memory(model, memory, 1, 1)
    assert held.kv is None
    assert held.missing == held.weights + held.workspace - held.budget
    gpu = dataclasses.replace(GPUS["h100"], memory=memory)
    ways = {way.ep_size: way for way in layouts(model, gpu, Wish(8, 8, 1024), (1024,))}
    assert [False, False, True, True] == [ways[n].step is not None for n in (1, 2, 4, 8)] or not ways[4].step
    assert ways[8].holds[1024] > 0
    assert ways[1].limit == "does not fit"


def test_layouts_use_all_gpus() -> None:
    """Groups times ranks is the number of GPUs; the chosen one holds most."""
    ways = layouts(MODELS["120b"], GPUS["h100"], Wish(6, 60, 8192), (8192,))
    assert [(6, 1), (3, 2), (2, 3), (1, 6)] == [(way.groups, way.ep_size) for way in ways]
    chosen = best(ways)
    assert chosen is not None
    assert chosen.batch == max(way.batch for way in ways)
    assert best(layouts(MODELS["120b"], dataclasses.replace(GPUS["h100"], memory=GIB), Wish(1, 1, 1024), ())) is None


@pytest.mark.parametrize("text", ["80", "GB", "-1GB", "0GB", "80 parsecs"])
def test_sizes_are_refused(text: str) -> None:
    """What is no size is named."""
    with pytest.raises(ValueError, match="is no size"):
        parse_size(text)
