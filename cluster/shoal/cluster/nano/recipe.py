"""How shoal-nano is trained: one TOML file beside the weights."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from shoal.cluster.nano.mixture import Mixture


@dataclass(frozen=True, slots=True)
class Stage:
    """Steps under one mixture. The learning rate goes in a straight line from `rate_from` to `rate_to` of the peak."""

    name: str
    steps: int
    tokens: int
    """About so many ids per rank and step, those of the prompts included."""
    mixture: Mixture
    rate_from: float = 1.0
    rate_to: float = 1.0
    balance: float = 0.02
    """Weight of the load-balancing loss."""
    echo: float = 0.0
    """Share of the ids that are echoes, lessons in copying without meaning."""
    quantised: bool = False
    """Train what will be published: experts as MXFP4, the rest as bf16, gradients straight through."""

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"stage {self.name}: steps is {self.steps}, not at least 1")
        if not 0 <= self.echo <= 1:
            raise ValueError(f"stage {self.name}: echo is {self.echo}, not between 0 and 1")


@dataclass(frozen=True, slots=True)
class Recipe:
    """Everything that decides the weights, given the code. Raises ValueError or TypeError naming a wrong key."""

    seed: int
    ranks: int
    """Processes of one thread; each draws its own examples."""
    matrix_rate: float
    """Peak learning rate of Muon, for the matrices between embedding and unembedding."""
    other_rate: float
    """Peak learning rate of AdamW, for everything else."""
    warmup: int
    average: float
    """Decay per step of the moving average of the weights, which is what gets published."""
    exam_every: int
    exam_size: int
    """Held-out examples per task and effort."""
    stages: tuple[Stage, ...]

    @classmethod
    def load(cls, path: Path) -> Recipe:
        """Raises OSError, ValueError, TypeError."""
        values: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
        stages = tuple(Stage(**{**stage, "mixture": Mixture(stage["mixture"])}) for stage in values.pop("stages"))
        known = {field.name for field in fields(cls)}
        if unknown := sorted(set(values) - known):
            raise ValueError(f"{path}: {unknown[0]} is no key of a recipe")
        return cls(**values, stages=stages)

    @property
    def steps(self) -> int:
        return sum(stage.steps for stage in self.stages)

    def at(self, step: int) -> tuple[Stage, float]:
        """The stage of a step (from 0) and its learning rate, relative to the peak."""
        first = 0
        for stage in self.stages:
            if step < first + stage.steps:
                along = (step - first) / stage.steps
                rate = stage.rate_from + (stage.rate_to - stage.rate_from) * along
                return stage, rate * min(1.0, (step + 1) / self.warmup)
            first += stage.steps
        raise ValueError(f"step {step} is after the last of {self.steps}")
