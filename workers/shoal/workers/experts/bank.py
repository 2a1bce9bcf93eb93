"""The experts that one rank has in memory, in slots, whatever epoch wants them.

An epoch's experts are staged while the epoch before still computes: what is missing is read into slots that it does not
use. What an epoch no longer wants stays in its slot until the slot is needed: when a peer dies, or the group shrinks
back, it need not be read again.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from shoal.kernels.target import Target
from shoal.workers.checkpoint import Checkpoint
from shoal.workers.checkpoint.reader import reading_threads
from shoal.workers.config import WorkerConfig
from shoal.workers.errors import NoRoomError
from shoal.workers.experts.copying import Peer
from shoal.workers.experts.layout_cache import LayoutCache, Load, key_of, place_of
from shoal.workers.experts.memory import free_bytes
from shoal.workers.experts.supply import ExpertSupply, bytes_of
from shoal.workers.model.config import ModelConfig
from shoal.workers.model.timing import Stopwatch
from shoal.workers.model.weights import FREE, LayerExperts, expert_bytes, load_experts, put, sample_expert

_AT_ONCE = 8
"""Experts that are read before they are copied to their slots: more need more memory beside them."""


@dataclass(frozen=True, slots=True)
class Staged:
    """One epoch's experts, ready to be used, and what that cost."""

    layers: tuple[LayerExperts, ...]
    wanted: tuple[frozenset[int], ...]
    loaded: int
    """Experts that were not in memory."""
    copied: int
    """Of those, experts that peers gave."""

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
    """Belongs to one thread at a time; the layers handed out are never changed where they are used. What peers ask for
    (`held`, `bytes_of`) may be asked from any thread."""

    def __init__(
        self,
        config: ModelConfig,
        supply: ExpertSupply,
        layout: str,
        spare_slots: int,
        free_bytes: Callable[[], int],
    ) -> None:
        """`layout` names how experts lie here; `spare_slots` are kept free per layer when memory is first taken;
        `free_bytes` says what memory is left."""
        self.layout = layout
        self._config = config
        self._supply = supply
        self._spare_slots = spare_slots
        self._free_bytes = free_bytes
        self._layers: list[LayerExperts | None] = [None] * config.num_layers
        self._in_use: list[frozenset[int]] = [frozenset()] * config.num_layers
        self._writing = threading.Lock()  # of slots: a peer gets an expert whole or not at all

    def stage(self, wanted: Sequence[Sequence[int]], sources: Sequence[str] = (), patient: bool = False) -> Staged:
        """Have the experts `wanted[layer]` in memory. What the committed epoch computes with is left as it is.

        `sources`: workers that may have some of them; `patient`: nobody waits.
        Raises NoRoomError when they do not fit, CheckpointError when they cannot be had.
        """
        self._require_room(wanted)
        staged, loaded = [], 0
        self._supply.begin(sources, patient)
        try:
            for layer, ids in enumerate(wanted):
                filled, read = self._fill(layer, frozenset(ids))
                staged.append(filled)
                loaded += read
        finally:
            self._supply.end()
        return Staged(tuple(staged), tuple(map(frozenset, wanted)), loaded, self._supply.copied)

    def held(self) -> list[tuple[int, ...]]:
        """Experts in memory by layer, whatever epoch wants them."""
        with self._writing:
            return [tuple(e for e in layer.ids if e != FREE) if layer else () for layer in self._layers]

    def bytes_of(self, layer: int, expert: int) -> bytes | None:
        """A copy of one of them; None when it is not there any more."""
        with self._writing:
            held = self._layers[layer]
            return bytes_of(held, held.ids.index(expert)) if held is not None and expert in held.ids else None

    def commit(self, staged: Staged) -> None:
        """`staged` is in use from now on; slots of the epoch before may be taken."""
        with self._writing:
            self._layers = list(staged.layers)
        self._in_use = list(staged.wanted)

    def _fill(self, layer: int, wanted: frozenset[int]) -> tuple[LayerExperts, int]:
        held = self._layers[layer]
        if held is None:
            fresh = self._supply.read(layer, sorted(wanted), self._spare_slots)
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
            new, places = self._supply.read(layer, some), slots[first : first + len(some)]
            with self._writing:
                put(held.gate_up, places, new.gate_up)
                put(held.down, places, new.down)
                held = replace(held, ids=_renamed(held.ids, places, some))
                if not grows:
                    self._layers[layer] = held  # the same memory: it is there even if this epoch never comes
        return held, len(missing)

    def _require_room(self, wanted: Sequence[Sequence[int]]) -> None:
        """Raise NoRoomError when new slots would take more memory than there is."""
        slots = 0
        for held, in_use, ids in zip(self._layers, self._in_use, wanted, strict=True):
            there = 0 if held is None else sum(e == FREE or e not in in_use | set(ids) for e in held.ids)
            missing = len(set(ids) - set(() if held is None else held.ids))
            if missing > there:
                slots += len(ids) + self._spare_slots
        need, free = slots * expert_bytes(self._config), self._free_bytes()
        if need > free:
            raise NoRoomError(
                f"{sum(map(len, wanted))} experts need {need / 2**30:.2f} GiB more, {free / 2**30:.2f} GiB are free"
            )


def open_bank(
    checkpoint: Checkpoint, target: Target, config: WorkerConfig, numerics_id: str, watch: Stopwatch
) -> ExpertBank:
    """An empty bank whose experts come from the checkpoint, or from peers that lay theirs out in the same way. `watch`
    learns what reading took."""
    device, int8 = target.device, target.int8
    sample = sample_expert(checkpoint.config, device, int8=int8)
    layout = f"{numerics_id}-{hashlib.blake2b(bytes_of(sample, 0), digest_size=8).hexdigest()}"

    def load(layer: int, ids: Sequence[int], spare_slots: int) -> LayerExperts:
        return load_experts(checkpoint, layer, ids, device, spare_slots, int8=int8, watch=watch)

    source: Load = load
    if config.layout_cache:
        threads = reading_threads(device, config.threads)
        place = Path(config.layout_cache) / place_of(checkpoint, target)
        cache = LayoutCache(place, key_of(checkpoint, target, sample), sample, threads)
        source = cache.through(load)
    supply = ExpertSupply(source, sample, lambda address: Peer(address, layout, config.tls), config.peer_copies)
    return ExpertBank(checkpoint.config, supply, layout, config.expert_spare_slots, lambda: free_bytes(device))


def _grown(held: LayerExperts, wanted: frozenset[int], spare_slots: int) -> tuple[LayerExperts, list[int]]:
    """New slots for `wanted` and the spare ones, those held already copied; and the slots that are free."""
    kept = [slot for slot, expert in enumerate(held.ids) if expert in wanted]
    size = len(wanted) + spare_slots
    grown = held.empty(size)
    for new, old in zip(grown.parts, held.parts, strict=True):
        new[: len(kept)] = old[kept]
    ids = (*(held.ids[slot] for slot in kept), *([FREE] * (size - len(kept))))
    return replace(grown, ids=ids), list(range(len(kept), size))


def _renamed(ids: Sequence[int], slots: Sequence[int], experts: Sequence[int]) -> tuple[int, ...]:
    result = list(ids)
    for slot, expert in zip(slots, experts, strict=False):
        result[slot] = expert
    return tuple(result)
