"""Every native library this machine can run, for tests that hold all of them to the same truth."""

from __future__ import annotations

import pytest
import torch

from shoal.kernels import native
from shoal.kernels.native.binding import Library
from shoal.kernels.native.instruction_set import supported


def _libraries() -> list[Library]:
    try:
        return [native.load(isa) for isa in supported()]
    except native.NativeUnavailableError:
        return []  # test_native_build.py and test_target.py still say what happens without a compiler


LIBRARIES = _libraries()
every_library = pytest.mark.parametrize("library", LIBRARIES, ids=lambda library: library.isa)


def bits(tensor: torch.Tensor) -> torch.Tensor:
    """fp32 as integers: equal only where every bit is, the sign of zero included."""
    return tensor.contiguous().view(torch.int32)


def assert_same_bits(expected: torch.Tensor, actual: torch.Tensor) -> None:
    assert expected.shape == actual.shape
    different = bits(expected) != bits(actual)
    assert not bool(different.any()), f"{int(different.sum())} of {different.numel()} numbers differ"
