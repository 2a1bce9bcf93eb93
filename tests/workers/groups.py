"""A whole expert-parallel group inside one process: one thread per rank, real gloo between them."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import torch

from shoal.cluster.placement import even_placement
from shoal.workers.checkpoint import open_checkpoint
from shoal.workers.engine.sequence import Sequence as Seq
from shoal.workers.experts.exchange import Exchange, LocalExchange
from shoal.workers.experts.group_exchange import GroupExchange
from shoal.workers.experts.placement import Placement
from shoal.workers.experts.process_group import ProcessGroup
from shoal.workers.experts.rendezvous import RendezvousServer
from tests.workers.engines import make_engine

_epochs = itertools.count(1)
_server: list[RendezvousServer] = []


T = TypeVar("T")


def on_ranks(size: int, work: Callable[[int], T]) -> list[T]:
    """Run `work(rank)` on one thread per rank; the results in rank order. The first error is raised after all end."""
    with ThreadPoolExecutor(size) as pool:
        return [future.result() for future in [pool.submit(work, rank) for rank in range(size)]]


def exchanges(size: int, placement: Placement, top_k: int, timeout: float = 20.0, *, place: str = "") -> list[Exchange]:
    """One connected exchange per rank, in a new epoch. `place`: the GPU that all ranks claim to share."""
    if size == 1:
        return [LocalExchange()]
    if not _server:
        _server.append(RendezvousServer("127.0.0.1"))
    epoch, port, cpu = next(_epochs), _server[0].port, torch.device("cpu")

    def connect(rank: int) -> Exchange:
        group = ProcessGroup("127.0.0.1", port, f"test/{epoch}", rank, size, timeout, cpu, place=place)
        assert group.staged == bool(place), "ranks that share a GPU exchange through the host"
        return GroupExchange(group, placement, epoch, top_k, cpu)

    return on_ranks(size, connect)


def run_group(
    path: Path, size: int, per_rank: Sequence[Sequence[Seq]], placement: Placement | None = None,
    graphs: Sequence[bool] = (),
) -> list[list[int]]:  # fmt: skip
    """Generate with a group of `size` ranks, rank r serving `per_rank[r]`; results of all ranks in one list. `graphs`:
    which ranks replay recordings."""
    shape = open_checkpoint(path).config
    placement = placement or even_placement(shape.num_layers, shape.num_experts, size)
    ends = exchanges(size, placement, shape.experts_per_token)
    engines = [
        make_engine(path, exchange=end, placement=placement, graphs=replays)
        for end, replays in zip(ends, graphs or [False] * size, strict=True)
    ]

    def serve(rank: int) -> list[list[int]]:
        engine = engines[rank]
        for s in per_rank[rank]:
            engine.submit(s)
        while not engine.step().idle:
            pass
        engine.check_integrity()
        engine.exchange.close()
        return [s.tokens[s.given_length :] for s in per_rank[rank]]

    return [tokens for rank in on_ranks(size, serve) for tokens in rank]
