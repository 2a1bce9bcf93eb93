"""Where experts come from when an epoch wants them: the checkpoint, or a peer that has them in memory.

A peer's bytes are packed already and need no disk; a checkpoint that lies near is read faster than anything comes over
a network. Which is better is measured, not guessed: while nobody waits, what was slower before is tried once again.
When one cannot give an expert, the other is asked.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from mmap import mmap

import structlog
import torch

from shoal.workers.checkpoint import CheckpointError
from shoal.workers.errors import PeerError
from shoal.workers.experts.copying import Peer
from shoal.workers.model.weights import LayerExperts

log = structlog.get_logger()


MODES = ("auto", "always", "never")
"""Peers give experts where that was faster of late; whenever one has them; only when the checkpoint cannot be read."""


class Source(Enum):
    """Who gives."""

    CHECKPOINT = "checkpoint"
    PEERS = "peers"


@dataclass(slots=True)
class Paces:
    """Seconds that an expert took from each source, lately."""

    seconds: dict[Source, float] = field(default_factory=dict)

    def took(self, source: Source, experts: int, seconds: float) -> None:
        """So many experts in so many seconds."""
        if experts:
            self.seconds[source] = seconds / experts

    def forget_slower(self) -> None:
        """The world changes: it is tried again."""
        if len(self.seconds) == len(Source):
            del self.seconds[max(self.seconds, key=lambda source: self.seconds[source])]

    def from_peers(self, candidates: Sequence[int], missing: int, patient: bool) -> Sequence[int]:
        """Which of the `candidates`, which peers have, should come from them; the rest of `missing` comes from the
        checkpoint. Only who is `patient` tries a source whose pace is unknown, and with one expert.

        >>> paces = Paces({Source.CHECKPOINT: 0.1})
        >>> paces.from_peers([4, 5, 6], 3, patient=True), paces.from_peers([4, 5, 6], 3, patient=False)
        ([4], [])
        >>> paces.took(Source.PEERS, 1, 0.05)
        >>> paces.from_peers([4, 5, 6], 3, patient=False)
        [4, 5, 6]
        """
        checkpoint, peers = self.seconds.get(Source.CHECKPOINT), self.seconds.get(Source.PEERS)
        if peers is None:
            return candidates[:1] if patient else candidates[:0]
        if checkpoint is None:
            return candidates[1:] if patient and len(candidates) == missing else candidates
        return candidates if peers < checkpoint else candidates[:0]


class ExpertSupply:
    """Belongs to one bank, and to the thread that stages."""

    def __init__(
        self,
        load: Callable[[int, Sequence[int], int], LayerExperts],
        sample: LayerExperts,
        connect: Callable[[str], Peer],
        mode: str = "auto",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`load(layer, ids, spare_slots)` reads the checkpoint and may raise CheckpointError; `sample` is one slot as
        experts are laid out; `mode` is one of MODES."""
        self._load, self._sample, self._connect, self._mode = load, sample, connect, mode
        self._clock = clock
        self._paces = Paces()
        self._addresses: tuple[str, ...] = ()
        self._patient = False
        self._peers: dict[Peer, list[frozenset[int]]] | None = None
        self.copied = 0
        """Experts that came from peers since `begin`."""

    def begin(self, addresses: Sequence[str], patient: bool) -> None:
        """A change begins: these workers may have experts. `patient`: nobody waits for it."""
        self._addresses, self._patient, self.copied = tuple(addresses), patient, 0
        if patient:
            self._paces.forget_slower()

    def end(self) -> None:
        """The change is staged, or failed."""
        for peer in self._peers or {}:
            peer.close()
        self._peers = None

    def read(self, layer: int, ids: Sequence[int], spare_slots: int = 0) -> LayerExperts:
        """These experts in this order, with free slots behind them. Raises CheckpointError when no source gives one."""
        copies = self._copy(layer, self._from_peers(layer, ids))
        rest = [expert for expert in ids if expert not in copies]
        loaded = None
        if rest:
            try:
                loaded = self._load_timed(layer, rest, 0 if copies else spare_slots)
            except CheckpointError as error:
                copies |= self._copy(layer, rest)
                if not copies.keys() >= set(rest):
                    raise
                log.warning("the checkpoint is away, peers gave what it has", layer=layer, problem=str(error))
        if loaded is not None and not copies:
            return loaded
        result = self._sample.empty(len(ids) + spare_slots)
        for expert, data in copies.items():
            put_bytes(result, ids.index(expert), data)
        for slot, expert in enumerate(rest if loaded is not None else ()):
            for target, source in zip(result.parts, loaded.parts if loaded is not None else (), strict=True):
                target[ids.index(expert)].copy_(source[slot])
        return LayerExperts((*ids, *result.ids[len(ids) :]), result.gate_up, result.down)

    def _load_timed(self, layer: int, ids: Sequence[int], spare_slots: int) -> LayerExperts:
        began = self._clock()
        loaded = self._load(layer, ids, spare_slots)
        self._paces.took(Source.CHECKPOINT, len(ids), self._clock() - began)
        return loaded

    def _from_peers(self, layer: int, ids: Sequence[int]) -> Sequence[int]:
        """Which of them should come from peers. Asks peers only where the answer may matter."""
        if self._mode == "never" or not self._addresses:
            return ()
        if self._mode == "auto" and not self._paces.from_peers(ids, len(ids), self._patient):
            return ()
        there = [expert for expert in ids if any(expert in held[layer] for held in self._asked().values())]
        return there if self._mode == "always" else self._paces.from_peers(there, len(ids), self._patient)

    def _copy(self, layer: int, ids: Sequence[int]) -> dict[int, bytearray]:
        """Those of `ids` that peers give, shared out among who has them. A peer that fails is not asked again."""
        copies: dict[int, bytearray] = {}
        if not ids:
            return copies
        asked: dict[Peer, list[int]] = {peer: [] for peer in self._asked()}
        for expert in ids:
            holders = [peer for peer, held in self._asked().items() if expert in held[layer]]
            if holders:
                asked[min(holders, key=lambda peer: len(asked[peer]))].append(expert)
        began, size = self._clock(), sum(part[0].nbytes for part in self._sample.parts)
        for peer, experts in asked.items():
            try:
                copies |= peer.read(layer, experts, size) if experts else {}
            except PeerError as error:
                log.warning("an expert was not copied", problem=str(error))
                self._leave(peer)
        self._paces.took(Source.PEERS, len(copies), self._clock() - began)
        self.copied += len(copies)
        return copies

    def _asked(self) -> dict[Peer, list[frozenset[int]]]:
        """Peers that answer, and what each has."""
        if self._peers is None:
            self._peers = {}
            for peer in [self._connect(address) for address in self._addresses]:
                try:
                    self._peers[peer] = peer.held()
                except PeerError as error:
                    log.info("a peer gives no experts", problem=str(error))
                    peer.close()
        return self._peers

    def _leave(self, peer: Peer) -> None:
        peer.close()
        if self._peers is not None:
            del self._peers[peer]


def bytes_of(experts: LayerExperts, slot: int) -> bytes:
    """A copy of everything in one slot."""
    return b"".join(_flat(part[slot]).cpu().numpy().tobytes() for part in experts.parts)


def put_bytes(experts: LayerExperts, slot: int, data: bytearray | mmap, first: int = 0) -> None:
    """The inverse, from byte `first` of `data` on."""
    for part in experts.parts:
        into = _flat(part[slot])
        into.copy_(torch.frombuffer(data, dtype=torch.uint8, count=into.numel(), offset=first))
        first += into.numel()
    assert first == len(data), f"an expert has {first} bytes, {len(data)} came"


def _flat(tensor: torch.Tensor) -> torch.Tensor:
    """The memory of a contiguous tensor as bytes."""
    return tensor.view(-1).view(torch.uint8)
