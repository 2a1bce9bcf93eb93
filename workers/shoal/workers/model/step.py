"""One step's integers on the host, before they become the tensors of a `ModelInput`."""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from shoal.kernels.attention import AttentionBatch
from shoal.workers.model.model import KvPlace, ModelInput
from shoal.workers.model.upload import Ints, Upload


@dataclass(frozen=True, slots=True)
class PlaceInts:
    """Where one kind of layer reads and writes."""

    slots: NDArray[np.int64]  # [T]
    table: NDArray[np.int32]  # [S, blocks], zeros past a sequence's end


NOTHING_LATE = np.zeros((2, 0), dtype=np.int64)


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
    late: NDArray[np.int64] = field(default_factory=lambda: NOTHING_LATE)
    """[2, late]: rows whose ids the host does not know, and their places among those that the step before chose."""

    @property
    def decoding(self) -> bool:
        """Whether every sequence computes one token, after which one is wanted."""
        return len(self.ids) == len(self.context_lens) == len(self.logit_rows)

    @property
    def late_ints(self) -> list[Ints]:
        """`late`, if there are any."""
        return [self.late] if self.late.size else []

    def upload(self, upload: Upload, chosen: Tensor | None = None) -> ModelInput:
        """On the device, for one step. `chosen` i64: what the step before chose."""
        full, sliding = self.full, self.sliding
        ids, positions, full_slots, sliding_slots, rows, cu, lens, full_table, sliding_table, *late = upload(
            [
                self.ids, self.positions, full.slots, sliding.slots, self.logit_rows,
                self.cu_q, self.context_lens, full.table, sliding.table, *self.late_ints,
            ]
        )  # fmt: skip
        fill_in(ids, late, chosen)
        return ModelInput(
            ids=ids,
            positions=positions,
            full=KvPlace(full_slots, AttentionBatch(cu, lens, full_table)),
            sliding=KvPlace(sliding_slots, AttentionBatch(cu, lens, sliding_table)),
            logit_rows=rows,
        )


def fill_in(ids: Tensor, late: Seq[Tensor], chosen: Tensor | None) -> None:
    """Put into a step's ids what the step before chose. `late`: the step's, on the device, if there are any."""
    if late and chosen is not None:
        rows, places = late[0]
        ids.index_copy_(0, rows, chosen[places])


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
