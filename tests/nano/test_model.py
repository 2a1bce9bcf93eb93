"""The fast parts against transformers' own."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from shoal.cluster.nano.model import build, hidden_states, imbalance
from shoal.cluster.nano.shape import NANO

SMALL = replace(NANO, num_layers=2, hidden_size=64, intermediate_size=32, sliding_window=24, vocab_size=300)
LENGTHS = (50, 9, 33)


def test_forward_and_gradients_equal_transformers() -> None:
    """Several sequences in one row, with windows and sinks, as its eager code does them one by one."""
    model = build(SMALL, 0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("sinks", "bias")):
                parameter.normal_(0, 0.3)
    ids = torch.randint(0, SMALL.vocab_size, (sum(LENGTHS),), generator=torch.Generator().manual_seed(1))
    ours, _ = hidden_states(model, ids, LENGTHS)
    probe = torch.randn(ours.shape, generator=torch.Generator().manual_seed(2))
    torch.autograd.backward((ours * probe).sum())
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    model.config._attn_implementation = model.config._experts_implementation = "eager"
    theirs = torch.cat(
        [model.model(input_ids=part[None], use_cache=False)[0][0] for part in torch.split(ids, list(LENGTHS))]
    )
    torch.autograd.backward((theirs * probe).sum())
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(gradients[name], parameter.grad, rtol=1e-3, atol=2e-4, msg=name)


def test_even_routing_has_no_imbalance() -> None:
    """1 and equal shares when every expert is chosen as often; more when one is always chosen."""
    turns = torch.stack([torch.roll(torch.arange(16.0), 4 * i) for i in range(4)]) * 1e-3
    even, loads = imbalance((turns,), 4)
    assert even.item() == pytest.approx(1.0, abs=1e-4)
    torch.testing.assert_close(loads, torch.full((1, 16), 1 / 16))
    assert imbalance((torch.arange(16.0).expand(8, 16),), 4)[0].item() > 2
