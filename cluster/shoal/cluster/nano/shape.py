"""The shape of shoal-nano: every part of GPT-OSS, small enough to train on two cores."""

from __future__ import annotations

from pathlib import Path

from shoal.cluster.checkpoint.presets import Preset
from shoal.cluster.errors import ConfigError
from shoal.workers.model.config import RopeConfig

NANO = Preset(
    "nano",
    num_layers=4,
    hidden_size=128,
    intermediate_size=128,
    num_experts=16,
    num_heads=8,
    num_kv_heads=2,
    vocab_size=1280,
    sliding_window=128,
    head_dim=32,
    rope=RopeConfig(factor=8.0, original_context=512),
)
"""3.5 M parameters, 1.3 M active. The context ends at 4096 because nothing longer than 512 was ever practised."""


def nano_directory() -> Path:
    """The trained checkpoint that comes with the sources. Raises ConfigError where only the package is installed."""
    directory = Path(__file__).resolve().parents[4] / "deploy" / "models" / "nano"
    if not (directory / "config.json").exists():
        raise ConfigError(
            f"shoal-nano is not here ({directory}): it comes with the sources and images, not the package"
        )
    return directory
