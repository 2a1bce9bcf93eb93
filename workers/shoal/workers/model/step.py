"""One step's integers on the host, before they become the tensors of a `ModelInput`."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from shoal.kernels.attention import AttentionBatch
from shoal.workers.model.model import KvPlace, ModelInput
from shoal.workers.model.upload import Ints, Upload


@dataclass(frozen=True, slots=True)
class PlaceInts:
    """Where one kind of layer reads and writes."""

    slots: NDArray[np.int64]  # [T]
    table: NDArray[np.int32]  # [S, blocks], zeros past a sequence's end


@dataclass(frozen=True, slots=True)
class StepInts:
    """As the fields of `ModelInput` and `AttentionBatch`."""

    ids: NDArray[np.int64]
    positions: NDArray[np.int64]
    cu_q: NDArray[np.int32]
    context_lens: NDArray[np.int32]
    full: PlaceInts
    sliding: PlaceInts
    logit_rows: NDArray[np.int64]

    @property
    def decoding(self) -> bool:
        """Whether every sequence computes one token, after which one is wanted."""
        return len(self.ids) == len(self.context_lens) == len(self.logit_rows)

    def upload(self, upload: Upload) -> ModelInput:
        """On the device, for one step."""
        full, sliding = self.full, self.sliding
        ids, positions, full_slots, sliding_slots, rows, cu, lens, full_table, sliding_table = upload(
            [
                self.ids, self.positions, full.slots, sliding.slots, self.logit_rows,
                self.cu_q, self.context_lens, full.table, sliding.table,
            ]
        )  # fmt: skip
        return ModelInput(
            ids=ids,
            positions=positions,
            full=KvPlace(full_slots, AttentionBatch(cu, lens, full_table)),
            sliding=KvPlace(sliding_slots, AttentionBatch(cu, lens, sliding_table)),
            logit_rows=rows,
        )


@dataclass(frozen=True, slots=True)
class Padding:
    """Where rows that only fill a step up read and write: the last block of each pool, which is nobody's."""

    block_size: int
    full_block: int
    sliding_block: int

    def fill(self, step: StepInts, size: int) -> list[Ints]:
        """The decode step `step` with `size` rows, as what changes from step to step: ids, positions, slots of both
        pools, lengths, the number of true rows, both tables. Pure."""
        rows = len(step.ids)
        assert step.decoding, "only steps of one token a sequence are filled up"
        assert rows <= size, f"{rows} rows in a step of {size}"

        def slots(place: PlaceInts, block: int) -> NDArray[np.int64]:
            return np.concatenate([place.slots, np.full(size - rows, block * self.block_size, dtype=np.int64)])

        def table(place: PlaceInts, block: int) -> NDArray[np.int32]:
            result = np.full((size, max(1, place.table.shape[1])), block, dtype=np.int32)
            result[:rows, : place.table.shape[1]] = place.table
            return result

        nothing = np.zeros(size - rows, dtype=np.int64)
        return [
            np.concatenate([step.ids, nothing]),
            np.concatenate([step.positions, nothing]),
            slots(step.full, self.full_block),
            slots(step.sliding, self.sliding_block),
            np.concatenate([step.context_lens, np.ones(size - rows, dtype=np.int32)]),
            np.array([rows], dtype=np.int32),
            table(step.full, self.full_block),
            table(step.sliding, self.sliding_block),
        ]


def no_step() -> StepInts:
    """The step of a rank without work."""
    i64, i32 = np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int32)
    place = PlaceInts(i64, np.zeros((0, 0), dtype=np.int32))
    return StepInts(i64, i64, np.zeros(1, dtype=np.int32), i32, place, place, i64)
