"""A group of plain processes: one engine each, no Ray, no gRPC. On a GPU they may all share one."""

from __future__ import annotations

import itertools
import multiprocessing
import os
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from shoal.cluster.checkpoint.presets import Preset
from shoal.cluster.placement import even_placement
from shoal.workers.checkpoint import open_checkpoint
from shoal.workers.checkpoint.synthetic import SyntheticWeights
from shoal.workers.engine.sequence import Sequence as Seq
from shoal.workers.experts.exchange import Exchange, LocalExchange
from shoal.workers.experts.group_exchange import GroupExchange
from shoal.workers.experts.process_group import ProcessGroup
from shoal.workers.experts.rendezvous import RendezvousServer
from tests.workers.engines import engine_of

TIMEOUT = 120.0
"""Seconds of a collective: ranks that share a device wait for each other's compilations too."""

_context = multiprocessing.get_context("forkserver")  # forks from a process that has torch already
_context.set_forkserver_preload(["tests.workers.engines"])
_epochs = itertools.count(1)


@dataclass(frozen=True, slots=True)
class Synthetic:
    """Weights that every rank makes for itself, in place of a checkpoint's directory."""

    preset: Preset
    seed: int

    def source(self, device: str) -> SyntheticWeights:
        """On that device."""
        return SyntheticWeights(self.preset.config(), self.seed, device)


@dataclass(frozen=True, slots=True)
class RankReport:
    """What one rank did."""

    tokens: list[list[int]]
    """Generated, per sequence."""
    staged: bool
    """Whether its exchange passed through the host because it shares a GPU."""
    steps: int


def generate(
    weights: Path | Synthetic, per_rank: Sequence[Sequence[Seq]], device: str = "cpu", place: str = "", **engine: Any
) -> list[RankReport]:
    """Generate with one process per entry of `per_rank`, rank r serving `per_rank[r]`; `engine` is for `engine_of`.

    `place` is the name of the GPU that the ranks say they share; empty: the truth.
    """
    size = len(per_rank)
    store = RendezvousServer("127.0.0.1") if size > 1 else None
    key = (store.port if store is not None else 0, next(_epochs))
    with ProcessPoolExecutor(size, _context) as pool:
        calls = [
            pool.submit(_serve, weights, rank, size, key, list(sequences), device, place, engine)
            for rank, sequences in enumerate(per_rank)
        ]
        return [call.result() for call in calls]


def _serve(
    weights: Path | Synthetic, rank: int, size: int, key: tuple[int, int], sequences: list[Seq], device: str,
    place: str, settings: dict[str, Any],
) -> RankReport:  # fmt: skip
    """One rank, in a process of its own."""
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    torch.set_num_threads(1)
    source = weights.source(device) if isinstance(weights, Synthetic) else open_checkpoint(weights)
    shape = source.config
    placement = even_placement(shape.num_layers, shape.num_experts, size)
    exchange: Exchange = LocalExchange()
    staged, (port, epoch), where = False, key, torch.device(device)
    if size > 1:
        group = ProcessGroup("127.0.0.1", port, f"plain/{epoch}", rank, size, TIMEOUT, where, place=place)
        exchange, staged = GroupExchange(group, placement, epoch, shape.experts_per_token, where), group.staged
    engine = engine_of(source, device=device, exchange=exchange, placement=placement, **settings)
    for s in sequences:
        engine.submit(s)
    while not engine.step().idle:
        pass
    engine.check_integrity()
    exchange.close()
    return RankReport([s.tokens[s.given_length :] for s in sequences], staged, engine.counters.steps)
