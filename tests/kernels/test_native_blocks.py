"""A part of a layer in one call: the same bits as its launchers one by one."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from shoal.kernels import attention_block as block
from shoal.kernels import expert_rows as experts
from shoal.kernels import native, norm_linear, target
from shoal.kernels.attention import AttentionBatch, BlockShape
from shoal.kernels.mxfp4 import ExpertWeights
from shoal.kernels.rope import rope_tables

pytestmark = pytest.mark.skipif(not native.available(), reason=f"no native kernels here: {native.reason()}")

HIDDEN, INNER, SLOTS, EXPERTS, TOP = 96, 64, 5, 9, 3


@pytest.fixture(autouse=True)
def native_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(target.OVERRIDE, "native")


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def packed(rows: int, width: int, seed: int) -> ExpertWeights:
    g = torch.Generator().manual_seed(seed)
    blocks = torch.randint(0, 256, (SLOTS, rows, width // 32, 16), dtype=torch.uint8, generator=g)
    scales = torch.randint(118, 124, (SLOTS, rows, width // 32), dtype=torch.uint8, generator=g)
    return ExpertWeights(blocks, scales, random(SLOTS, rows, seed=seed).bfloat16())


@pytest.mark.parametrize("tokens", [1, 5, 17])
def test_norm_linear_is_its_two_launchers(tokens: int) -> None:
    """Normed rows and products both."""
    x, norm, weight, bias = random(tokens, 72), random(72, seed=1), random(50, 72, seed=2), random(50, seed=3)
    given = (x, norm, 1e-5, weight.bfloat16(), bias.bfloat16())
    for expected, found in zip(norm_linear.norm_linear_torch(*given), norm_linear.norm_linear(*given), strict=True):
        assert torch.equal(expected, found)


@pytest.mark.parametrize("window", [None, 4])
def test_the_attention_block_is_its_launchers(window: int | None) -> None:
    """A chunk and a decode in one batch: output and both caches."""
    hq, hk, hd, bs, lens, queries = 4, 2, 32, 4, (9, 6), (5, 1)
    tokens = sum(queries)
    fused = (hq + 2 * hk) * hd
    weights = block.BlockWeights(
        random(HIDDEN, seed=1),
        random(fused, HIDDEN, seed=2).bfloat16(),
        random(fused, seed=3).bfloat16(),
        random(hq, seed=4),
        random(HIDDEN, hq * hd, seed=5).bfloat16(),
        random(HIDDEN, seed=6).bfloat16(),
    )
    positions = torch.tensor([4, 5, 6, 7, 8, 5])
    tables = torch.tensor([[1, 3, 5], [2, 0, 0]], dtype=torch.int32)
    batch = AttentionBatch(
        torch.tensor([0, 5, 6], dtype=torch.int32), torch.tensor(lens, dtype=torch.int32), tables.contiguous()
    )
    slots = torch.tensor([4 * 3, 13, 14, 15, 20, 1])  # where tables put those positions
    rope = rope_tables(150000.0, 32.0, 32.0, 1.0, 4096, 1.3466, hd, 16, torch.device("cpu"))
    shape = BlockShape(hq, hk, hd, 1e-5, hd**-0.5)
    results = []
    for run in (block.attention_block_torch, block.attention_block):
        cache = random(6, bs, hk, hd, seed=7), random(6, bs, hk, hd, seed=8)
        out = run(random(tokens, HIDDEN), weights, shape, rope, positions, cache, slots, batch, window)
        results.append((out, *cache))
    for expected, found in zip(*results, strict=True):
        assert torch.equal(expected, found)


Rows = Callable[..., torch.Tensor]


def rows_of(run: Rows, tokens: int, away: bool) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(tokens)
    here = torch.tensor([7, 0, 3, 4, 8])
    slot_of = torch.full((EXPERTS,), -1, dtype=torch.int32)
    slot_of[here] = torch.arange(SLOTS, dtype=torch.int32)
    ids = torch.stack([here[torch.randperm(SLOTS, generator=g)[:TOP]] for _ in range(tokens)]).int()
    if away:
        ids[torch.rand(tokens, TOP, generator=g) < 0.5] = -1
    loads = torch.arange(SLOTS)
    up, down = packed(2 * INNER, HIDDEN, 1), packed(HIDDEN, INNER, 2)
    return run(random(tokens, HIDDEN), ids, slot_of, up, down, loads, limit=7.0, alpha=1.702), loads


@pytest.mark.parametrize("away", [False, True])
@pytest.mark.parametrize("tokens", [1, 3, 40])
def test_expert_rows_are_their_launchers(tokens: int, away: bool) -> None:
    """Rows in the order of the pairs and the counted loads, all experts here or some of them elsewhere."""
    for expected, found in zip(
        rows_of(experts.expert_rows_torch, tokens, away), rows_of(experts.expert_rows, tokens, away), strict=True
    ):
        assert torch.equal(expected, found)


def test_an_expert_that_is_not_here_is_refused() -> None:
    """An id that no slot serves is our own mistake, named before anything is computed."""
    nowhere = torch.full((EXPERTS,), -1, dtype=torch.int32)
    ids, loads = torch.zeros(2, TOP, dtype=torch.int32), torch.zeros(SLOTS, dtype=torch.int64)
    with pytest.raises(AssertionError, match="not here"):
        experts.expert_rows(
            random(2, HIDDEN), ids, nowhere, packed(2 * INNER, HIDDEN, 1), packed(HIDDEN, INNER, 2), loads,
            limit=7.0, alpha=1.702,
        )  # fmt: skip
