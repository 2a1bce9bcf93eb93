"""Synthetic weights built where an engine would use them, to see that they fit and how long it takes."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch

from shoal.cluster.checkpoint.presets import Preset
from shoal.cluster.placement import even_placement
from shoal.kernels import target as targets
from shoal.workers.checkpoint.layout import hf_specs, is_expert_tensor, stored_bytes
from shoal.workers.checkpoint.synthetic import SyntheticWeights
from shoal.workers.errors import NoRoomError
from shoal.workers.experts.memory import free_bytes
from shoal.workers.model.weights import expert_bytes, load_dense, load_experts


@dataclass(frozen=True, slots=True)
class Built:
    """What one rank would hold, and what making it took."""

    device: str
    experts: int
    """Of each layer."""
    dense_bytes: int
    expert_bytes: int
    seconds: float


def build(preset: Preset, seed: int, device: str, ep_size: int = 1, rank: int = 0) -> Built:
    """Make what rank `rank` of `ep_size` holds, in the order its kernels read, and let it go again.

    Raises BackendError for a device that is not there, NoRoomError before anything is made when it does not fit.
    """
    target, config = targets.choose(device), preset.config()
    ids = even_placement(config.num_layers, config.num_experts, ep_size).experts_of(0, rank)
    dense = sum(stored_bytes(spec) for spec in hf_specs(config) if not is_expert_tensor(spec.name))
    experts = config.num_layers * len(ids) * expert_bytes(config)
    free = free_bytes(target.device)
    if dense + experts > free:
        raise NoRoomError(
            f"{preset.name} needs {(dense + experts) / 2**30:.2f} GiB as rank {rank} of {ep_size}, "
            f"{free / 2**30:.2f} GiB are free on {target.device}"
        )
    source = SyntheticWeights(config, seed, target.device)
    start = time.perf_counter()
    held = [load_dense(source, target.device)]
    layers = [load_experts(source, layer, ids, target.device) for layer in range(config.num_layers)]
    if target.device.type == "cuda":
        torch.cuda.synchronize(target.device)
    seconds = time.perf_counter() - start
    assert len(held) + len(layers) == 1 + config.num_layers, "all of it was there at once"
    assert source.bytes_read == dense + experts, (source.bytes_read, dense, experts)
    return Built(str(target.device), len(ids), dense, experts, seconds)
