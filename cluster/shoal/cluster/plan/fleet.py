"""The ways to lay a model out on a number of GPUs: groups of ranks that share the experts."""

from __future__ import annotations

from dataclasses import dataclass

from shoal.cluster.plan import roofline
from shoal.cluster.plan.footprint import Footprint
from shoal.cluster.plan.gpu import Gpu
from shoal.cluster.plan.memory import RankMemory, largest_batch, rank_memory


@dataclass(frozen=True, slots=True)
class Wish:
    """What is asked of the fleet. `batch` counts sequences over all GPUs."""

    gpus: int
    batch: int
    context: int
    step_tokens: int = 8192
    share: float = 0.9
    spare_slots: int = 0


@dataclass(frozen=True, slots=True)
class Layout:
    """One way, and what comes of it. Sequences are those of the whole fleet."""

    ep_size: int
    groups: int
    memory: RankMemory
    """Of one rank, with room for its share of `batch`."""
    holds: dict[int, int]
    """Sequences that run at once, by context."""
    batch: int
    """The wished batch, or as much of it as fits."""
    step: roofline.Step | None
    """Of one group with its share of `batch`; None when not one sequence fits."""

    @property
    def tokens_per_second(self) -> float:
        """Of all groups."""
        return 0.0 if self.step is None else self.groups * self.step.tokens_per_second

    @property
    def limit(self) -> str:
        """What the step's bound is made of most."""
        if self.step is None:
            return "does not fit"
        parts = {
            "experts": self.step.expert_bytes, "dense": self.step.dense_bytes,
            "unembedding": self.step.unembedding_bytes, "KV": self.step.kv_bytes,
        }  # fmt: skip
        slowest = max(self.step.memory_seconds, self.step.compute_seconds, self.step.link_seconds)
        if slowest == self.step.compute_seconds:
            return "arithmetic"
        if slowest == self.step.link_seconds:
            return "link"
        return max(parts, key=lambda name: parts[name])


def layouts(model: Footprint, gpu: Gpu, wish: Wish, contexts: tuple[int, ...]) -> list[Layout]:
    """Every way to use all GPUs with groups of one size; pure."""
    sizes = [n for n in range(1, wish.gpus + 1) if wish.gpus % n == 0 and n <= model.config.num_experts]
    return [_layout(model, gpu, wish, contexts, size) for size in sizes]


def best(ways: list[Layout]) -> Layout | None:
    """The layout with the highest bound among those that hold the largest batch; None when nothing fits."""
    able = [way for way in ways if way.step is not None]
    return max(able, key=lambda way: (way.batch, way.tokens_per_second), default=None)


def _layout(model: Footprint, gpu: Gpu, wish: Wish, contexts: tuple[int, ...], ep_size: int) -> Layout:
    groups = wish.gpus // ep_size

    def most(context: int) -> int:
        return wish.gpus * largest_batch(
            model, gpu.memory, ep_size, context,
            step_tokens=wish.step_tokens, share=wish.share, spare_slots=wish.spare_slots,
        )  # fmt: skip

    batch = min(wish.batch, most(wish.context))
    mine = max(1, -(-batch // wish.gpus))
    held = rank_memory(
        model, gpu.memory, ep_size, mine,
        step_tokens=max(wish.step_tokens, mine), share=wish.share, spare_slots=wish.spare_slots,
    )  # fmt: skip
    step = None
    if batch:
        one = -(-batch // groups)
        step = roofline.decode(model, gpu, one, wish.context, ep_size, roofline.EXCHANGE_SECONDS)
    return Layout(ep_size, groups, held, {context: most(context) for context in contexts}, batch, step)
