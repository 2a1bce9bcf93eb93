"""Orthogonal updates."""

from __future__ import annotations

import pytest
import torch

from shoal.cluster.nano.muon import Muon, orthogonal


@pytest.mark.parametrize("shape", [(32, 32), (3, 64, 32), (3, 32, 96)])
def test_singular_values_are_near_one(shape: tuple[int, ...]) -> None:
    """Newton-Schulz in bf16 brings them between 0.5 and 1.4, which is all that it is for."""
    values = torch.linalg.svdvals(orthogonal(torch.randn(shape, generator=torch.Generator().manual_seed(0))))
    assert 0.4 < values.min()
    assert values.max() < 1.4


def test_a_step_goes_down() -> None:
    """On a least-squares problem the loss falls by far."""
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(64, 16, generator=generator), torch.randn(64, 8, generator=generator)
    weight = torch.zeros(16, 8, requires_grad=True)
    optimizer = Muon([weight], lr=0.02)
    losses = []
    for _ in range(40):
        optimizer.zero_grad()
        loss = (x @ weight - y).square().mean()
        torch.autograd.backward(loss)
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]
