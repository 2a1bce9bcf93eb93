"""The experts that one rank has in memory, in slots, whatever epoch wants them.

An epoch's experts are staged while the epoch before still computes: what is missing is read into slots that it does not
use. What an epoch no longer wants stays in its slot until the slot is needed: when a peer dies, or the group shrinks
back, it need not be read again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch

from shoal.kernels.moe_matmul import Weights
from shoal.workers.checkpoint import Checkpoint
from shoal.workers.errors import NoRoomError
from shoal.workers.model.timing import Stopwatch
from shoal.workers.model.weights import FREE, LayerExperts, expert_bytes, load_experts, put, slots_like

_AT_ONCE = 8
"""Experts that are read before they are copied to their slots: more need more memory beside them."""


@dataclass(frozen=True, slots=True)
class Staged:
    """One epoch's experts, ready to be used, and what that cost."""

    layers: tuple[LayerExperts, ...]
    wanted: tuple[frozenset[int], ...]
    loaded: int
    """Experts read from the checkpoint."""

    @property
    def held(self) -> int:
        """Experts that the epoch computes with, over all layers."""
        return sum(map(len, self.wanted))

    def views(self) -> list[LayerExperts]:
        """The layers as the epoch sees them: a slot that it does not want is free."""
        return [
            replace(layer, ids=tuple(e if e in wanted else FREE for e in layer.ids))
            for layer, wanted in zip(self.layers, self.wanted, strict=True)
        ]


class ExpertBank:
    """Belongs to one thread at a time; the layers handed out are never changed where they are used."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        device: torch.device,
        spare_slots: int,
        free_bytes: Callable[[], int],
        *,
        int8: bool = False,
        watch: Stopwatch | None = None,
    ) -> None:
        """`spare_slots` are kept free per layer when memory is first taken; `free_bytes` says what memory is left;
        `int8` is for activations of 8 bits; `watch` learns what reading took."""
        self._checkpoint = checkpoint
        self._device = device
        self._spare_slots = spare_slots
        self._free_bytes = free_bytes
        self._int8 = int8
        self._watch = watch
        layers = checkpoint.config.num_layers
        self._layers: list[LayerExperts | None] = [None] * layers
        self._in_use: list[frozenset[int]] = [frozenset()] * layers

    def stage(self, wanted: Sequence[Sequence[int]]) -> Staged:
        """Have the experts `wanted[layer]` in memory. What the committed epoch computes with is left as it is.

        Raises NoRoomError when they do not fit, CheckpointError when they cannot be read.
        """
        self._require_room(wanted)
        staged, loaded = [], 0
        for layer, ids in enumerate(wanted):
            filled, read = self._fill(layer, frozenset(ids))
            staged.append(filled)
            loaded += read
        return Staged(tuple(staged), tuple(map(frozenset, wanted)), loaded)

    def commit(self, staged: Staged) -> None:
        """`staged` is in use from now on; slots of the epoch before may be taken."""
        self._layers = list(staged.layers)
        self._in_use = list(staged.wanted)

    def _fill(self, layer: int, wanted: frozenset[int]) -> tuple[LayerExperts, int]:
        held = self._layers[layer]
        if held is None:
            fresh = self._read(layer, sorted(wanted), self._spare_slots)
            self._layers[layer] = fresh
            return fresh, len(wanted)
        missing = sorted(wanted - set(held.ids))
        busy = wanted | self._in_use[layer]
        slots = [slot for slot, expert in enumerate(held.ids) if expert == FREE or expert not in busy]
        grows = len(slots) < len(missing)
        if grows:
            held, slots = _grown(held, wanted, self._spare_slots)
        for first in range(0, len(missing), _AT_ONCE):
            some = missing[first : first + _AT_ONCE]
            new = self._read(layer, some)
            put(held.gate_up, slots[first : first + len(some)], new.gate_up)
            put(held.down, slots[first : first + len(some)], new.down)
        if missing:
            held = replace(held, ids=_renamed(held.ids, slots, missing))
        if not grows:
            self._layers[layer] = held  # the same memory: what was just read is there even if this epoch never comes
        return held, len(missing)

    def _read(self, layer: int, ids: Sequence[int], spare_slots: int = 0) -> LayerExperts:
        return load_experts(self._checkpoint, layer, ids, self._device, spare_slots, int8=self._int8, watch=self._watch)

    def _require_room(self, wanted: Sequence[Sequence[int]]) -> None:
        """Raise NoRoomError when new slots would take more memory than there is."""
        slots = 0
        for held, in_use, ids in zip(self._layers, self._in_use, wanted, strict=True):
            there = 0 if held is None else sum(e == FREE or e not in in_use | set(ids) for e in held.ids)
            missing = len(set(ids) - set(() if held is None else held.ids))
            if missing > there:
                slots += len(ids) + self._spare_slots
        need, free = slots * expert_bytes(self._checkpoint.config), self._free_bytes()
        if need > free:
            raise NoRoomError(
                f"{sum(map(len, wanted))} experts need {need / 2**30:.2f} GiB more, {free / 2**30:.2f} GiB are free"
            )


def _grown(held: LayerExperts, wanted: frozenset[int], spare_slots: int) -> tuple[LayerExperts, list[int]]:
    """New slots for `wanted` and the spare ones, those held already copied; and the slots that are free."""
    kept = [slot for slot, expert in enumerate(held.ids) if expert in wanted]
    size = len(wanted) + spare_slots

    def copied(weights: Weights) -> Weights:
        result = slots_like(weights, size)
        for into, old in (
            (result.blocks, weights.blocks),
            (result.scales, weights.scales),
            (result.bias, weights.bias),
        ):
            into[: len(kept)] = old[kept]
        return result

    ids = (*(held.ids[slot] for slot in kept), *([FREE] * (size - len(kept))))
    return LayerExperts(ids, copied(held.gate_up), copied(held.down)), list(range(len(kept), size))


def _renamed(ids: Sequence[int], slots: Sequence[int], experts: Sequence[int]) -> tuple[int, ...]:
    result = list(ids)
    for slot, expert in zip(slots, experts, strict=False):
        result[slot] = expert
    return tuple(result)
