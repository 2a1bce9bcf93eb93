"""What a rank gets its weights from, wherever they come from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor

from shoal.workers.model.config import ModelConfig


class WeightSource(Protocol):
    """Weights under the Hugging Face names: `Checkpoint` reads them, `SyntheticWeights` makes them.

    What is returned belongs to the caller and lies on the source's own device. Calls may come from several threads.
    """

    @property
    def config(self) -> ModelConfig: ...

    @property
    def bytes_read(self) -> int:
        """Bytes of weights returned so far."""
        ...

    def tensor(self, name: str) -> Tensor:
        """The whole tensor `name`. Raises CheckpointError when it cannot be had."""
        ...

    def experts(self, name: str, ids: Sequence[int]) -> Tensor:
        """The slices `ids` of an expert tensor, in the order of `ids`, and no others. Raises CheckpointError."""
        ...
