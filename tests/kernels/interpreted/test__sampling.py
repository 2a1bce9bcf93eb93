"""The sampling kernels in the interpreter: exactly their twin, in whole numbers and in which token is chosen."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch

from shoal.kernels import _sampling
from shoal.kernels.sampling import Chosen, sample_torch, settings


def _logits(rows: int, vocabulary: int, seed: int) -> torch.Tensor:
    """Few distinct values, so that many tokens tie, zeros of both signs among them, and one that stands out."""
    g = torch.Generator().manual_seed(seed)
    values = (torch.randn(rows, vocabulary, generator=g) * 4).round() * 0.75
    values[:, 1::2] *= -1.0
    values[0, vocabulary // 2] = 20.0
    return values


def _masks(rows: int, vocabulary: int, share: float, seed: int) -> torch.Tensor:
    g = torch.Generator().manual_seed(seed)
    bits = (torch.rand(rows, -(-vocabulary // 32), 32, generator=g) < share).long()
    bits[:, 0, 5] = 1
    return (bits << torch.arange(32)).sum(-1).to(torch.int32)


PLAIN: dict[str, Any] = {"top_k": False, "top_p": False, "logprobs": None}


def _assert_same(expected: Chosen, found: Chosen) -> None:
    for name, mine, theirs in zip(Chosen._fields, expected, found, strict=True):
        assert mine.dtype == theirs.dtype
        assert torch.equal(mine, theirs), name


DRAWS = (0.0, 2.0**-53, 0.25, 0.6180339887, 1.0 - 2.0**-53)


@pytest.mark.parametrize("vocabulary", [40, 4096, 9001])
def test_plain_draws_and_the_largest(vocabulary: int) -> None:
    """Temperatures and draws, in one block and in several, and a greedy row among them."""
    hows = [settings(0.0, 0.0), *(settings(t, draw) for t, draw in itertools.product((0.3, 100.0), DRAWS))]
    logits, how = _logits(len(hows), vocabulary, 1), torch.tensor(hows)

    _assert_same(sample_torch(logits, how), _sampling.sample(logits, how, None, **PLAIN))


@pytest.mark.parametrize(("top_k", "top_p"), [(True, False), (False, True), (True, True)])
def test_filters(top_k: bool, top_p: bool) -> None:
    """Cuts through tokens that tie, filters that keep one and that keep all, rows without any, and a greedy one."""
    filters = [(1, 1.0, 0.0), (7, 0.9, 0.0), (0, 0.31, 0.02), (2000, 0.97, 0.0), (0, 1.0, 0.0)]
    hows = [settings(1.5, 0.7, k if top_k else 0, p if top_p else 1.0, m) for k, p, m in filters]
    hows.append(settings(0.0, 0.0, 5, 0.5))
    logits, how = _logits(len(hows), 5000, 2), torch.tensor(hows)

    found = _sampling.sample(logits, how, None, top_k=top_k, top_p=top_p, logprobs=None)

    _assert_same(sample_torch(logits, how, top_k=top_k, top_p=top_p), found)


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_masks(share: float) -> None:
    """One token left, some, and half of them, with filters and without, for some rows and not for others."""
    filters = [(0, 1.0, -1), (0, 1.0, 0), (3, 1.0, 1), (0, 0.5, 0), (3, 0.5, 1)]
    hows = [settings(0.7, 0.99, k, p, 0.0, mask) for k, p, mask in filters] + [settings(0.0, 0.0, mask_row=1)]
    logits, how, masks = _logits(len(hows), 4500, 3), torch.tensor(hows), _masks(2, 4500, share, 4)

    found = _sampling.sample(logits, how, masks, top_k=True, top_p=True, logprobs=3)

    _assert_same(sample_torch(logits, how, masks, top_k=True, top_p=True, logprobs=3), found)


@pytest.mark.parametrize("n", [0, 1, 20])
def test_log_probabilities(n: int) -> None:
    """Totals, maxima, the chosen logit and the likeliest: bit for bit, fewer where fewer are left."""
    hows = [settings(t, 0.4, 0, 1.0, 0.0, mask) for t, mask in ((0.0, -1), (0.5, 0), (1.0, -1))]
    logits, how, masks = _logits(len(hows), 8200, 5), torch.tensor(hows), _masks(1, 8200, 0.002, 6)

    found = _sampling.sample(logits, how, masks, top_k=False, top_p=False, logprobs=n)

    _assert_same(sample_torch(logits, how, masks, logprobs=n), found)


def test_a_row_never_depends_on_its_batch() -> None:
    """Alone, without the filters, masks and log-probabilities of its neighbours."""
    hows = [settings(0.8, 0.37), settings(1.0, 0.5, 5, 0.7, 0.0, 0)]
    logits, how, masks = _logits(2, 4100, 7), torch.tensor(hows), _masks(1, 4100, 0.5, 8)

    many = _sampling.sample(logits, how, masks, top_k=True, top_p=False, logprobs=2)
    alone = _sampling.sample(logits[:1], how[:1], None, **PLAIN)

    assert many.ids[0] == alone.ids[0]


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # numpy sees NaN, which is what is wanted here
@pytest.mark.parametrize("how", [settings(0.0, 0.0), settings(1.0, 0.9), settings(1.0, 0.9, 5, 0.5)])
def test_logits_that_are_no_numbers_choose_a_token_that_there_is(how: tuple[int, ...]) -> None:
    """Whichever: the next step looks its embedding up. A row of nobody may hold anything."""
    logits = torch.full((1, 4100), torch.nan)

    found = _sampling.sample(logits, torch.tensor([how]), None, top_k=True, top_p=True, logprobs=None)

    assert 0 <= found.ids[0] < 4100


def test_no_rows() -> None:
    """Nothing to choose from, nothing launched."""
    none = _sampling.sample(torch.zeros(0, 50), torch.zeros(0, 6, dtype=torch.int64), None, **PLAIN)

    assert none.ids.shape == (0,)
