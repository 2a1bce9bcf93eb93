"""Shapes that can be made: two small ones for tests and demonstrations, and the two that OpenAI published."""

from __future__ import annotations

from dataclasses import dataclass, field

from shoal.workers.checkpoint.config_file import PUBLISHED_EOS, PUBLISHED_VOCABULARY
from shoal.workers.checkpoint.layout import GROUP
from shoal.workers.model.config import ModelConfig, RopeConfig

CONTROL_IDS = 32  # the last ids of a vocabulary that is not the published one: Harmony's and a few reserved
_SMALLEST_VOCABULARY = 256 + CONTROL_IDS


@dataclass(frozen=True, slots=True)
class Preset:
    """A shape to make a checkpoint of. Layers alternate, sliding first. Raises ValueError naming the field."""

    name: str
    num_layers: int
    hidden_size: int
    intermediate_size: int
    num_experts: int
    num_heads: int
    num_kv_heads: int
    vocab_size: int
    sliding_window: int
    head_dim: int = 64
    experts_per_token: int = 4
    rope: RopeConfig = field(default_factory=RopeConfig)
    swiglu_limit: float = 7.0
    rms_eps: float = 1e-5

    def __post_init__(self) -> None:
        for key in ("num_layers", "num_experts", "num_heads", "num_kv_heads", "sliding_window"):
            if getattr(self, key) < 1:
                raise ValueError(f"{key}: {getattr(self, key)} is less than 1")
        for key in ("hidden_size", "intermediate_size"):
            if getattr(self, key) < GROUP or getattr(self, key) % GROUP:
                raise ValueError(f"{key}: {getattr(self, key)} is not a multiple of {GROUP}")
        if self.num_heads % self.num_kv_heads:
            raise ValueError(f"num_kv_heads: {self.num_kv_heads} does not divide num_heads {self.num_heads}")
        if self.head_dim < 2 or self.head_dim % 2:
            raise ValueError(f"head_dim: {self.head_dim} is not even")
        if not 1 <= self.experts_per_token <= self.num_experts:
            raise ValueError(f"experts_per_token: {self.experts_per_token} is not between 1 and {self.num_experts}")
        if self.vocab_size < _SMALLEST_VOCABULARY:
            raise ValueError(f"vocab_size: {self.vocab_size} is less than {_SMALLEST_VOCABULARY}")

    @property
    def control_base(self) -> int:
        """Id of <|startoftext|>, the first of the control block."""
        published = self.vocab_size == PUBLISHED_VOCABULARY
        return 199998 if published else self.vocab_size - CONTROL_IDS

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        """<|return|>, <|endoftext|> and <|call|>, in the published order."""
        return tuple(token - 199998 + self.control_base for token in PUBLISHED_EOS)

    @property
    def max_context(self) -> int:
        return int(self.rope.original_context * self.rope.factor)

    def config(self) -> ModelConfig:
        """What a reader of the finished checkpoint finds."""
        return ModelConfig(
            num_layers=self.num_layers,
            hidden_size=self.hidden_size,
            intermediate_size=self.intermediate_size,
            num_experts=self.num_experts,
            experts_per_token=self.experts_per_token,
            num_heads=self.num_heads,
            num_kv_heads=self.num_kv_heads,
            head_dim=self.head_dim,
            vocab_size=self.vocab_size,
            layer_windows=tuple(self.sliding_window if layer % 2 == 0 else None for layer in range(self.num_layers)),
            rope=self.rope,
            max_context=self.max_context,
            rms_eps=self.rms_eps,
            swiglu_limit=self.swiglu_limit,
            eos_token_ids=self.eos_token_ids,
        )


PRESETS = {
    preset.name: preset
    for preset in (
        # Seconds on a CPU; the window is short so that tests pass it.
        Preset("tiny", 4, 256, 256, 8, 8, 2, vocab_size=1024, sliding_window=32),
        Preset("small", 6, 768, 768, 16, 12, 4, vocab_size=8192, sliding_window=128),
        Preset("20b", 24, 2880, 2880, 32, 64, 8, vocab_size=PUBLISHED_VOCABULARY, sliding_window=128),
        Preset("120b", 36, 2880, 2880, 128, 64, 8, vocab_size=PUBLISHED_VOCABULARY, sliding_window=128),
    )
}


def find_preset(name: str) -> Preset:
    """The preset called `name`. Raises ValueError listing the names there are."""
    if name not in PRESETS:
        raise ValueError(f"preset: {name!r} is not one of {', '.join(PRESETS)}")
    return PRESETS[name]
