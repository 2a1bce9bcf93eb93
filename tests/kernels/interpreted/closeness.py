"""How close a kernel must come to its twin."""

from __future__ import annotations

import torch
from torch import Tensor

DTYPES = [torch.float32, torch.bfloat16]


def assert_close(expected: Tensor, found: Tensor) -> None:
    """fp32: the order of a sum may differ. bf16: one unit in the last place, where the rounding fell the other way."""
    assert expected.dtype == found.dtype
    relative, absolute = (2e-5, 2e-5) if expected.dtype == torch.float32 else (2**-7, 2**-7)
    torch.testing.assert_close(found.double(), expected.double(), rtol=relative, atol=absolute)
