"""The weights as a checkpoint will hold them: experts in MXFP4, everything else in bf16.

Training through it is quantisation-aware with a straight-through estimator: the rounded weights answer, the unrounded
ones learn.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from shoal.cluster.nano.fused import fusible
from shoal.kernels.mxfp4 import GROUP


def is_packed(name: str) -> bool:
    """Whether a parameter of the model is stored in MXFP4."""
    return name.endswith(("experts.gate_up_proj", "experts.down_proj"))


@fusible
def round_mxfp4(w: Tensor) -> Tensor:
    """As `mxfp4.quantize` and back, along the last dimension, in a few fused loops."""
    groups = w.reshape(*w.shape[:-1], -1, GROUP)
    largest = groups.abs().amax(-1, keepdim=True)
    exponent = torch.floor(torch.log2(largest.clamp(min=2.0**-100))) - 2
    # log2 may err by one next to a power of two; the two comparisons put it right.
    exponent = exponent + (largest >= torch.exp2(exponent + 3)).float() - (largest < torch.exp2(exponent + 2)).float()
    scale = torch.exp2(exponent)
    magnitude = groups.abs() / scale
    step = torch.where(magnitude < 2, 0.5, torch.where(magnitude < 4, 1.0, 2.0))
    magnitude = (torch.round(magnitude / step) * step).clamp(max=6.0)
    return (torch.sign(groups) * magnitude * scale).flatten(-2)


def rounded(name: str, weight: Tensor) -> Tensor:
    """The value that the published checkpoint has for a float32 parameter. Experts are [E, in, out] here."""
    if is_packed(name):
        return round_mxfp4(weight.transpose(-1, -2).contiguous()).transpose(-1, -2).contiguous()
    return weight.to(torch.bfloat16).float()


@contextmanager
def as_published(model: nn.Module) -> Iterator[None]:
    """Inside, the parameters hold their published values; afterwards their own again. Gradients stay."""
    own = {}
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            own[name] = parameter.data
            parameter.data = rounded(name, parameter.data)
    try:
        yield
    finally:
        for name, parameter in model.named_parameters():
            parameter.data = own[name]
