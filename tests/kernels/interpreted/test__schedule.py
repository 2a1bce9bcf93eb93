"""The Triton kernels that order the experts' work, in the interpreter, against Python's own sorting."""

from __future__ import annotations

import pytest
import torch

from shoal.kernels import _schedule
from shoal.kernels._schedule import Schedule
from shoal.kernels.chips import CHIPS

EXPERTS = 9


def cut(counts: list[int], tile: int) -> list[int]:
    """The schedule in plain Python: expert by expert, tile by tile."""
    return [e << 16 | t for e, count in enumerate(counts) for t in range(-(-count // tile))]


def told(schedule: Schedule) -> list[int]:
    """What a schedule says before the surplus, which must be -1 to the last."""
    entries = schedule.entries.tolist()
    used = [e for e in entries if e >= 0]
    assert entries == used + [-1] * (len(entries) - len(used))
    return used


@pytest.mark.parametrize("counts", [[0], [1], [16, 0, 17], [0, 0, 300, 1, 0], [5] * 40])
def test_tiles_are_numbered_expert_by_expert(counts: list[int]) -> None:
    """No expert's rows share a tile with another's; what is left over is -1."""
    offsets = torch.tensor([0, *counts]).cumsum(0).to(torch.int32)

    schedule = _schedule.schedule_tiles(offsets, sum(counts))

    assert cut(counts, schedule.tile) == told(schedule)


@pytest.mark.parametrize("tokens", [1, 3, 16, 64, 65, 600])
def test_pairs_are_arranged_by_expert_and_know_their_place(tokens: int) -> None:
    """By one program or by many (beyond 256 pairs; 600 tokens are scanned in two rounds): a stable sort,
    strangers left out, loads added."""
    g = torch.Generator().manual_seed(tokens)
    ids = torch.stack([torch.randperm(EXPERTS, generator=g)[:4] for _ in range(tokens)]).to(torch.int32)
    ids[torch.rand(tokens, 4, generator=g) < 0.2] = -1
    slot_of = torch.tensor([3, -1, 0, 5, 4, -1, 2, 6, 1], dtype=torch.int32)  # experts 1 and 5 lie elsewhere
    loads = torch.arange(7)

    found = _schedule.arrange(ids, slot_of, loads)

    served = [(int(slot_of[e]), pair) for pair, e in enumerate(ids.flatten().tolist()) if e >= 0 and slot_of[e] >= 0]
    order = sorted(range(len(served)), key=lambda place: served[place])
    counts = [sum(slot == s for slot, _ in served) for s in range(7)]
    assert [served[place][1] // 4 for place in order] == found.rows[: len(served)].tolist()
    assert order == found.places[: len(served)].tolist()
    assert [sum(counts[:s]) for s in range(8)] == found.offsets.tolist()
    assert [s + count for s, count in enumerate(counts)] == loads.tolist()
    assert cut(counts, found.schedule.tile) == told(found.schedule)


def test_no_pairs_are_an_empty_order() -> None:
    """An idle rank takes part with zero tokens."""
    loads = torch.zeros(3, dtype=torch.int64)

    found = _schedule.arrange(torch.empty(0, 4, dtype=torch.int32), torch.zeros(9, dtype=torch.int32), loads)

    assert found.offsets.tolist() == [0, 0, 0, 0]
    assert found.schedule.entries.numel() == 0


def test_a_rank_without_experts_serves_nobody() -> None:
    """Pairs there may be, slots there are none."""
    slot_of, loads = torch.full((9,), -1, dtype=torch.int32), torch.zeros(0, dtype=torch.int64)

    found = _schedule.arrange(torch.full((5, 4), -1, dtype=torch.int32), slot_of, loads)

    assert found.offsets.tolist() == [0]
    assert found.schedule.entries.numel() == 0


def test_a_tile_holds_twice_the_mean_of_rows() -> None:
    """Within the chip's table: an expert with twice its share is read once."""
    hopper = CHIPS["sm90"]

    assert [16, 16, 32, 64, 128, 128] == [hopper.moe_height(rows, 32) for rows in (4, 256, 512, 1000, 1200, 32768)]
