"""The building blocks of the twins: right, and the same bits whatever surrounds a row."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.kernels import exact


@pytest.mark.parametrize("n", [0, 1, 2, 3, 7, 64, 2880])
def test_tree_sum_adds_every_element_once(n: int) -> None:
    """Whole numbers add up exactly, whatever the length."""
    a = torch.arange(3 * n, dtype=torch.float32).view(3, n)

    assert torch.equal(a.double().sum(-1).float(), exact.tree_sum(a))


def test_tree_sum_leaves_its_argument_alone() -> None:
    """Folding works on copies."""
    a = torch.ones(2, 5)

    exact.tree_sum(a)

    assert torch.equal(torch.ones(2, 5), a)


def test_exp_is_within_two_ulp() -> None:
    """Over the whole range that fp32 can hold, against float64."""
    x = torch.linspace(-87.2, 88.7, 200_001)
    expected = x.double().exp()

    assert ((exact.exp(x).double() - expected) / expected).abs().max() < 2 * 2**-23


def test_exp_of_the_extremes() -> None:
    """exp(0) is exactly 1 and exp(-inf) exactly 0: that is what makes a masked key leave no trace."""
    x = torch.tensor([0.0, -0.0, -torch.inf, -88.0, 89.0, torch.inf, torch.nan])

    y = exact.exp(x)

    assert y[:6].tolist() == [1.0, 1.0, 0.0, 0.0, torch.inf, torch.inf]
    assert y[6].isnan()


@settings(max_examples=20, deadline=None)
@given(rows=st.integers(1, 9), n=st.integers(1, 9), k=st.integers(1, 200), seed=st.integers(0, 2**31))
def test_a_row_of_a_product_never_depends_on_its_batch(rows: int, n: int, k: int, seed: int) -> None:
    """Alone or among others, the bits of a row are equal, and right."""
    g = torch.Generator().manual_seed(seed)
    x, w = torch.randn(rows, k, generator=g), torch.randn(n, k, generator=g).bfloat16()

    y = exact.matmul_t(x, w)

    torch.testing.assert_close(y.double(), x.double() @ w.double().T, rtol=1e-5, atol=1e-5)
    for row in range(rows):
        assert torch.equal(y[row], exact.matmul_t(x[row : row + 1], w)[0])


def test_chunks_and_threads_change_no_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the size of the temporaries nor the number of threads is visible in the result."""
    g = torch.Generator().manual_seed(0)
    x, w = torch.randn(50, 333, generator=g), torch.randn(301, 333, generator=g)
    before = torch.get_num_threads()
    results = []
    for threads, chunk in ((1, 1 << 22), (2, 1 << 22), (2, 1000)):
        torch.set_num_threads(threads)
        monkeypatch.setattr(exact, "_CHUNK", chunk)
        results.append((exact.matmul_t(x, w), exact.exp(x)))
    torch.set_num_threads(before)

    for product, exponential in results[1:]:
        assert torch.equal(results[0][0], product)
        assert torch.equal(results[0][1], exponential)
