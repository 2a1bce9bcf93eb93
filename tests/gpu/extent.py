"""How large the run is: the published shapes on a GPU, or a tiny one on a CPU that shows that the script is sound."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from shoal.cluster.checkpoint.presets import PRESETS, Preset
from shoal.kernels import target as targets
from shoal.kernels.target import Target
from shoal.workers.assemble import EngineSizes
from shoal.workers.checkpoint.synthetic import SyntheticWeights
from shoal.workers.model.config import ModelConfig


@dataclass(frozen=True, slots=True)
class Extent:
    """Sizes of everything. `goals` are decode tok/s of a model by batch at 1k, from the issue, for an H200."""

    device: str
    large: Preset
    small: Preset
    batches: tuple[int, ...]
    contexts: tuple[int, ...]
    prompts: tuple[int, ...]
    step_tokens: int
    saturated: tuple[int, int]
    """Prompt and output tokens."""
    most_saturated: int
    seconds: float
    """For each figure, once it is warm."""
    layers: int
    """Compared with the twin."""
    layer_tokens: int
    peer_batches: tuple[int, ...]

    @property
    def on_gpu(self) -> bool:
        return self.device == "cuda"

    def preset(self, name: str) -> Preset:
        """ "large" or "small"."""
        return self.large if name == "large" else self.small

    def target(self) -> Target:
        return targets.choose(self.device)

    def source(self, preset: Preset, layers: int | None = None) -> SyntheticWeights:
        """Its weights, of the first `layers` layers alone where that is said."""
        shape = preset if layers is None else replace(preset, num_layers=layers)
        return SyntheticWeights(shape.config(), 0, torch.device(self.device))


FULL = Extent(
    device="cuda", large=PRESETS["120b"], small=PRESETS["20b"], batches=(1, 4, 16, 64, 256), contexts=(1024, 8192),
    prompts=(1024, 8192, 32768), step_tokens=8192, saturated=(1024, 1024), most_saturated=1024, seconds=1.5, layers=3,
    layer_tokens=96, peer_batches=(1, 8),
)  # fmt: skip
_TINY = Preset("tiny wide", 3, 128, 64, 8, 4, 1, vocab_size=512, sliding_window=32)
TINY = Extent(
    device="cpu", large=_TINY, small=replace(_TINY, name="tiny narrow", num_layers=2, num_experts=4),
    batches=(1, 3), contexts=(40, 70), prompts=(20, 90), step_tokens=64, saturated=(12, 6), most_saturated=4,
    seconds=0.02, layers=2, layer_tokens=5, peer_batches=(1, 2),
)  # fmt: skip

GOALS = {
    "120b": {1: 300.0, 4: 820.0, 16: 1470.0, 64: 3300.0},
    "20b": {1: 400.0},
}
SATURATED_GOALS = {"120b": 6900.0, "20b": 13900.0}
IDLE_GOAL = 0.03


def sizes_for(
    config: ModelConfig, extent: Extent, *, batch: int, kv_tokens: int = 0, kv_memory: int = 0
) -> EngineSizes:
    """An engine without a prefix cache, so that nothing is found and everything is computed."""
    return EngineSizes(
        batch_size=batch, batch_tokens=max(extent.step_tokens, batch), kv_tokens=kv_tokens or 16, kv_memory=kv_memory,
        caching=False, max_waiting=1 << 20, max_context=config.max_context,
    )  # fmt: skip
