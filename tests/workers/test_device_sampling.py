"""The device's sampler beside the host's: the same tokens wherever the draw is not on the very edge of one."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from shoal.kernels.sampling import logprob, sample, settings
from shoal.workers.model.sampling import SamplingParams, uniform
from shoal.workers.model.sampling import sample as host_sample

VOCABULARY = 3000


def _row(seed: int, scale: float) -> torch.Tensor:
    return torch.randn(VOCABULARY, generator=torch.Generator().manual_seed(seed)) * scale


@pytest.mark.parametrize("temperature", [0.0, 0.2, 1.0, 5.0])
@pytest.mark.parametrize(("top_k", "top_p", "min_p"), [(0, 1.0, 0.0), (40, 1.0, 0.0), (0, 0.9, 0.0), (40, 0.8, 0.05)])
def test_both_choose_the_same_tokens(temperature: float, top_k: int, top_p: float, min_p: float) -> None:
    """Two hundred draws from each of two rows; log-probabilities and the likeliest too, to fp32's precision."""
    params = SamplingParams(temperature, top_p, top_k, min_p, logprobs=True, top_logprobs=5)
    draws = [uniform(7, 0, position) for position in range(200)]
    for scale in (1.0, 6.0):
        row = _row(3, scale)
        how = torch.tensor([settings(temperature, draw, top_k, top_p, min_p) for draw in draws])

        found = sample(row.repeat(200, 1), how, top_k=top_k > 0, top_p=top_p < 1.0, logprobs=5)

        for i, draw in enumerate(draws):
            expected = host_sample(row.numpy(), params, draw)
            assert expected.id == int(found.ids[i])
            assert expected.logprob is not None
            mine = logprob(float(found.logits[i]), float(found.maxima[i]), int(found.totals[i]))
            assert abs(expected.logprob - mine) < 1e-5
            assert [token for token, _ in expected.top] == found.top_ids[i].tolist()


def test_both_keep_to_what_is_allowed() -> None:
    """A mask here, a list of ids there."""
    row, allowed = _row(5, 2.0), np.array([1, 31, 32, 700, 2999])
    bits = np.zeros(-(-VOCABULARY // 32) * 32, dtype=np.uint8)
    bits[allowed] = 1
    masks = torch.from_numpy(np.packbits(bits, bitorder="little").view(np.int32)).view(1, -1)
    for temperature, draw in itertools.product((0.0, 1.0), (0.0, 0.3, 0.6, 0.99)):
        expected = host_sample(row.numpy(), SamplingParams(temperature), draw, allowed=allowed)

        found = sample(row[None], torch.tensor([settings(temperature, draw, mask_row=0)]), masks)

        assert expected.id == int(found.ids[0])


@pytest.mark.parametrize("draw", [0.0, 1.0 - 2.0**-53])
def test_the_extremes_of_a_draw_are_tokens_with_weight(draw: float) -> None:
    """The first that is kept and the last, as on the host."""
    row = _row(6, 3.0)
    row[0], row[-1] = -1e9, -1e9

    found = int(sample(row[None], torch.tensor([settings(1.0, draw, 0, 0.5)]), top_p=True).ids[0])

    assert host_sample(row.numpy(), SamplingParams(1.0, 0.5), draw).id == found
