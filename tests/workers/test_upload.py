"""A step's integers arrive as they were, in one piece."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from shoal.workers.model.step import Padding, PlaceInts, StepInts, no_step
from shoal.workers.model.upload import Ints, Upload, offsets, views

CPU = torch.device("cpu")
shapes = st.lists(st.tuples(st.lists(st.integers(0, 5), min_size=1, max_size=2), st.booleans()), max_size=6)


def arrays(drawn: list[tuple[list[int], bool]], seed: int) -> list[Ints]:
    random = np.random.Generator(np.random.Philox(key=seed))
    drawn_ints = [(random.integers(-9, 9, shape), wide) for shape, wide in drawn]
    return [ints.astype(np.int64) if wide else ints.astype(np.int32) for ints, wide in drawn_ints]


@given(shapes, st.integers(0, 99))
def test_what_is_packed_comes_out(drawn: list[tuple[list[int], bool]], seed: int) -> None:
    """Any shapes, empty ones included, and the next step does not change what the last one brought."""
    upload, sent, later = Upload(CPU, packed=True), arrays(drawn, seed), arrays(drawn, seed + 1)
    found = [upload(step) for step in (sent, later, later)]
    for step, tensors in zip((sent, later, later), found, strict=True):
        assert [array.tolist() for array in step] == [tensor.tolist() for tensor in tensors]


@given(shapes, st.integers(0, 99))
def test_an_inbox_keeps_its_place(drawn: list[tuple[list[int], bool]], seed: int) -> None:
    """Views that were taken before the copy see it: that is how recordings read their step."""
    sent = arrays(drawn, seed)
    inbox = torch.zeros(offsets(sent)[1] + 7, dtype=torch.uint8)
    before = views(inbox, sent)
    Upload(CPU, packed=True).into(inbox, sent)
    assert [array.tolist() for array in sent] == [tensor.tolist() for tensor in before]
    assert all(start % 16 == 0 for start in offsets(sent)[0])


@given(st.integers(0, 5), st.integers(0, 3), st.integers(0, 4))
def test_padding_reads_and_writes_nobodys_block(rows: int, more: int, width: int) -> None:
    """True rows first, unchanged; behind them rows of one token in the block behind the last one."""
    random = np.random.Generator(np.random.Philox(key=rows))
    if rows:
        width = max(1, width)

    def ints(*shape: int) -> np.ndarray[tuple[int, ...], np.dtype[np.int64]]:
        return random.integers(0, 50, shape)

    def place() -> PlaceInts:
        return PlaceInts(ints(rows), ints(rows, width).astype(np.int32))

    lens = (1 + ints(rows)).astype(np.int32)
    cu = np.arange(rows + 1, dtype=np.int32)
    step = StepInts(ints(rows), ints(rows), cu, lens, place(), place(), np.arange(rows))
    filled = Padding(16, 70, 80).fill(step, rows + more)
    expected = (step.ids, step.positions, step.full.slots, step.sliding.slots, step.context_lens)
    assert [array.tolist() for array in expected] == [array[:rows].tolist() for array in filled[:5]]
    assert [[0] * more, [0] * more, [70 * 16] * more, [80 * 16] * more, [1] * more] == [
        array[rows:].tolist() for array in filled[:5]
    ]
    assert [rows] == filled[5].tolist()
    for table, true, block in zip(filled[6:], (step.full.table, step.sliding.table), (70, 80), strict=True):
        assert true.tolist() == table[:rows, : true.shape[1]].tolist()
        assert (table[rows:] == block).all()


def test_a_step_without_tokens_is_a_decode_step() -> None:
    """A rank that only serves its experts replays them too."""
    assert no_step().decoding
    assert [0] == [tensor.numel() for tensor in Upload(CPU)([no_step().ids])]
