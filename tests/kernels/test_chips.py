"""The one table of GPUs."""

from __future__ import annotations

import pytest

from shoal.kernels.chips import CHIPS, Chip, kind_of


@pytest.mark.parametrize(
    ("capability", "name"),
    [((8, 0), "sm80"), ((8, 6), "sm80"), ((8, 9), "sm89"), ((9, 0), "sm90"), ((10, 0), "sm100"), ((10, 3), "sm100"),
     ((12, 0), "sm120"), ((12, 1), "sm120"), ((7, 5), "sm80")],
)  # fmt: skip
def test_every_capability_has_an_entry(capability: tuple[int, int], name: str) -> None:
    """Its own, or that of the nearest older chip."""
    assert name == kind_of(*capability)


@pytest.mark.parametrize("chip", CHIPS.values(), ids=CHIPS)
def test_the_tiles_of_a_chip_can_be_chosen(chip: Chip) -> None:
    """Heights rise and are powers of two that hold any mean; a narrow tile stands in for one that is there."""
    heights = [tile.rows for tile in chip.moe]
    assert heights == sorted(heights)
    assert all(height & (height - 1) == 0 for height in heights)
    assert {chip.moe_height(rows, 32) for rows in range(1, 5000, 7)} == set(heights)
    assert all(chip.moe_tile(height).rows == height for height in heights)
    assert chip.moe_narrow is None or chip.moe_narrow.rows in heights
    assert chip.moe_height(5, 0) in heights


@pytest.mark.parametrize("chip", CHIPS.values(), ids=CHIPS)
def test_programs_share_a_multiprocessors_memory(chip: Chip) -> None:
    """One has what a program may use; two have a kibibyte less than half each."""
    assert chip.shared_bytes == chip.room(1)
    assert 2 * (chip.room(2) + 1024) <= chip.shared_bytes + 1024
