"""The shape of a GPT-OSS model, read from `config.json` of either published layout.

Field names of the Hugging Face file: `GptOssConfig`; of OpenAI's own: `gpt_oss.torch.model.ModelConfig`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class RopeConfig:
    """YaRN rotary embedding (arXiv 2309.00071), never truncated: `rope_scaling` with `truncate: false`."""

    theta: float = 150000.0
    factor: float = 32.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    original_context: int = 4096
    truncate: bool = False

    @property
    def concentration(self) -> float:
        """Multiplies cos and sin, so q·k grows by its square."""
        return 0.1 * math.log(self.factor) + 1.0 if self.factor > 1.0 else 1.0


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """Everything the mathematics needs to know; complete and consistent once it exists."""

    num_layers: int
    hidden_size: int
    intermediate_size: int
    num_experts: int
    experts_per_token: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    layer_windows: tuple[int | None, ...]  # keys a query sees, itself included; None: all
    rope: RopeConfig
    max_context: int
    rms_eps: float
    swiglu_limit: float
    eos_token_ids: tuple[int, ...]
    swiglu_alpha: float = 1.702

    @property
    def q_size(self) -> int:
        return self.num_heads * self.head_dim

    @property
    def kv_size(self) -> int:
        return self.num_kv_heads * self.head_dim

    @property
    def attention_scale(self) -> float:
        return 1.0 / math.sqrt(self.head_dim)
