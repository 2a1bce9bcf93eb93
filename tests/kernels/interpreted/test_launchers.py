"""Every launcher, told to use Triton, launches the Triton kernel of its name with its arguments in their places."""

from __future__ import annotations

import pytest
import torch

from shoal.kernels import (
    _attention,
    _dense,
    _moe_matmul,
    _norm,
    _norm_linear,
    _rope,
    _routing,
    _sampling,
    attention,
    dense,
    moe_matmul,
    norm,
    norm_linear,
    rope,
    routing,
    sampling,
    target,
)
from shoal.kernels.fragments import permute
from tests.kernels.cases import Cases


@pytest.fixture(autouse=True)
def use_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(target.OVERRIDE, "triton")


def test_launchers_that_return_a_result() -> None:
    """The same bits as from the kernel itself."""
    cases = Cases(seed=1)
    x, w, weight = cases.normal(6, 64), cases.experts(2, 32, 64), cases.normal(9, 64).bfloat16()
    rows, offsets = cases.assignment(6, [2, 3])
    limit, alpha = 7.0, 1.702
    k_cache, v_cache, batch = cases.sequences([(1, 9), (2, 2)])
    q, sinks = cases.normal(3, 4, 64), cases.normal(4)
    wanted, how = torch.tensor([5, 0]), torch.tensor([sampling.settings(1.0, 0.4, 9, 0.8)])
    pairs = [
        (
            _moe_matmul.gate_up(x, rows, offsets, permute(w), limit=limit, alpha=alpha),
            moe_matmul.gate_up(x, rows, offsets, w, limit=limit, alpha=alpha),
        ),
        (_moe_matmul.down(x[:5], offsets, permute(w)), moe_matmul.down(x[:5], offsets, moe_matmul.prepare(w))),
        (_dense.linear(x, weight, None, torch.float32), dense.linear(x, weight, None, torch.float32)),
        (_norm.rms_norm(x, weight[0], 1e-5), norm.rms_norm(x, weight[0], 1e-5)),
        (_routing.combine(x.view(3, 2, 64), q[:, :2, 0]), routing.combine(x.view(3, 2, 64), q[:, :2, 0])),
        (
            _attention.attention(q, k_cache, v_cache, batch, sinks, 5, 0.1),
            attention.attention(q, k_cache, v_cache, batch, sinks, 5, 0.1),
        ),
        (
            _dense.linear(x, weight, None, None, x[:, :9].contiguous()),
            dense.linear(x, weight, None, residual=x[:, :9].contiguous()),
        ),
        (_norm.rms_norm(x, weight[0], 1e-5, wanted), norm.rms_norm(x, weight[0], 1e-5, wanted)),
        *zip(
            _norm_linear.norm_linear(x, weight[0], 1e-5, weight, None, torch.bfloat16, wanted),
            norm_linear.norm_linear(x, weight[0], 1e-5, weight, None, torch.bfloat16, wanted),
            strict=True,
        ),
        *zip(
            _sampling.sample(x[:1], how, None, top_k=True, top_p=True, logprobs=2),
            sampling.sample(x[:1], how, top_k=True, top_p=True, logprobs=2),
            strict=True,
        ),
        *zip(_routing.route(x, 4), routing.route(x, 4), strict=True),
        (_routing.route(x, 4, wanted[:1] - 2)[0], routing.route(x, 4, wanted[:1] - 2)[0]),
        *zip(
            _routing.combine_normed(x.view(3, 2, 64), q[:, :2, 0], x[3:], weight[0], 1e-5),
            routing.combine_normed(x.view(3, 2, 64), q[:, :2, 0], x[3:], weight[0], 1e-5),
            strict=True,
        ),
    ]

    for expected, found in pairs:
        assert torch.equal(expected, found)


def test_launchers_that_write_in_place() -> None:
    """The rotation and the cache."""
    cases = Cases(seed=2)
    cos, sin = rope.rope_tables(150000.0, 32.0, 32.0, 1.0, 4096, 1.35, 64, 16, "cpu")
    positions = torch.tensor([3, 9])
    mine, expected = ([cases.normal(2, 4, 64), cases.normal(2, 2, 64)] for _ in range(2))
    _rope.apply_rope_(expected[0], expected[1], positions, cos, sin)
    rope.apply_rope_(mine[0], mine[1], positions, cos, sin)
    caches = [torch.zeros(2, 8, 2, 64) for _ in range(2)]
    attention.write_kv(mine[1], mine[1] + 1, caches[0], caches[1], positions)

    assert torch.equal(expected[0], mine[0])
    assert torch.equal(expected[1], mine[1])
    assert torch.equal(mine[1], caches[0].flatten(0, 1)[positions])
    assert torch.equal(mine[1] + 1, caches[1].flatten(0, 1)[positions])
