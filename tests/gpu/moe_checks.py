"""What must hold of the experts' kernels on a GPU. See `checks`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from unittest import mock

import torch
from torch import Tensor

from shoal.kernels import _moe_matmul, _norm, _routing, _schedule, moe_matmul, mxfp4, mxfp8
from shoal.kernels.chips import MoeTile, chip_for
from shoal.kernels.expert_rows import expert_rows, expert_rows_torch
from shoal.kernels.fragments import permute
from shoal.kernels.mxfp4 import ExpertWeights
from shoal.kernels.mxfp8 import Bf16Weights, Mxfp8Weights
from shoal.kernels.routing import combine_torch, route_torch
from tests.gpu.checks import Check, Setting, error, recorded, same
from tests.kernels import reference
from tests.kernels.cases import Cases

LIMIT, ALPHA = 7.0, 1.702


@contextmanager
def one_tile(s: Setting, tile: MoeTile) -> Iterator[None]:
    """Inside, this tile is the only one that the chip has."""
    only = replace(chip_for(torch.empty(0, device=s.device)), moe=(tile,), moe_narrow=None)
    with (
        mock.patch.object(_moe_matmul, "chip_for", return_value=only),
        mock.patch.object(_schedule, "chip_for", return_value=only),
    ):
        yield


def moe_is_right(s: Setting) -> float:
    """Both grouped matmuls against float64, with full and ragged tiles and an idle expert."""
    cases, width = s.cases(1), s.size(2880, 96)
    w1, w2 = cases.experts(3, s.size(5760, 140), width), cases.experts(3, s.size(2880, 75), width)
    x = cases.normal(20, width)
    rows, offsets = cases.assignment(20, [33, 0, 7])
    h = _moe_matmul.gate_up(x, rows, offsets, permute(w1), limit=LIMIT, alpha=ALPHA)
    y = _moe_matmul.down(x[rows.long()], offsets, permute(w2))
    return max(
        error(reference.gate_up(x, rows, offsets, w1, limit=LIMIT, alpha=ALPHA), h),
        error(reference.expert_linear(x[rows.long()], offsets, w2), y),
    )


def moe_reads_other_formats(s: Setting) -> float:
    """The same numbers as bf16 and as MXFP8 through the same launcher."""
    cases, width = s.cases(3), s.size(2880, 96)
    w, x = cases.experts(2, s.size(5760, 140), width), cases.normal(20, width)
    rows, offsets = cases.assignment(20, [16, 4])
    values = mxfp4.dequantize(w.blocks, w.scales, torch.float32)
    found = 0.0
    for other in (Bf16Weights(values.bfloat16(), w.bias), Mxfp8Weights(*mxfp8.quantize(values), w.bias)):
        h = _moe_matmul.gate_up(x, rows, offsets, other, limit=LIMIT, alpha=ALPHA)
        found = max(found, error(moe_matmul.gate_up_torch(x, rows, offsets, other, limit=LIMIT, alpha=ALPHA), h))
    return found


def every_code_is_decoded(s: Setting) -> float:
    """All codes at all scales, laid open by an identity for activations: exact."""
    return _decoded(s, [5, 6, 7, 8, 20, 64, 100, 120, 124, 125, 126, 127, 128, 9, 127, 10])


def the_smallest_weights_are_decoded(s: Setting) -> float:
    """As subnormal numbers of bf16, by the product and by the tensor cores."""
    smallest = [5, 4, 3] if s.device == "cpu" else [0, 1, 2, 3]  # the interpreter rounds to bf16 without subnormals
    return _decoded(s, (smallest * 6)[:16])


def _decoded(s: Setting, scales: list[int]) -> float:
    w = s.cases(8).experts(1, 16, 32)
    codes = torch.arange(16, dtype=torch.uint8, device=s.device)
    w.blocks[0, :, 0, :] = (codes | codes.flip(0) << 4)[None]
    w.scales[0, :, 0] = torch.tensor(scales, dtype=torch.uint8, device=s.device)
    w.bias.zero_()
    offsets = torch.tensor([0, 32], dtype=torch.int32, device=s.device)
    eye = torch.eye(32, dtype=s.dtype, device=s.device)
    found = _moe_matmul.down(eye, offsets, permute(w))
    return same("decoded", reference.decode(w.blocks, w.scales)[0].T.to(found), found)


def moe_rows_are_independent(s: Setting) -> float:
    """Rows of a batch of 40 launched alone, with the same tile (for another, see below)."""
    cases, width = s.cases(2), s.size(2880, 96)
    w, x = permute(cases.experts(2, s.size(5760, 140), width)), cases.normal(40, width)
    rows, offsets = cases.assignment(40, [5, 35])
    count = 0.0
    with one_tile(s, chip_for(x).moe[0]):
        many = _moe_matmul.gate_up(x, rows, offsets, w, limit=LIMIT, alpha=ALPHA)
        for r in (0, 4, 5, 36, 37, 39):
            alone = torch.tensor([0, int(r < 5), 1], dtype=torch.int32, device=s.device)
            one = _moe_matmul.gate_up(x, rows[r : r + 1], alone, w, limit=LIMIT, alpha=ALPHA)
            count += same("gate_up", many[r], one[0])
    return count


def moe_tiles_agree(s: Setting) -> float:
    """All tiles of this chip give the same bits: the claim that lets a batch choose."""
    cases, width = s.cases(4), s.size(2880, 96)
    w1, w2 = permute(cases.experts(3, s.size(5760, 140), width)), permute(cases.experts(3, s.size(2880, 75), width))
    x = cases.normal(s.size(300, 30), width)
    rows, offsets = cases.assignment(len(x), [len(x) - 8, 1, 7])
    chip = chip_for(x)
    results = []
    for tile in chip.moe_tiles:
        with one_tile(s, tile):
            h = _moe_matmul.gate_up(x, rows, offsets, w1, limit=LIMIT, alpha=ALPHA)
            results.append((tile, h, _moe_matmul.down(x, offsets, w2)))
    _, h0, y0 = results[0]
    return sum(same(f"{tile}", h0, h) + same(f"{tile}", y0, y) for tile, h, y in results[1:])


def far_experts_are_reached(s: Setting) -> float:
    """The last of as many experts as a layer has, beyond 2^31 numbers where they are bf16, as if it were alone."""
    experts, n, width = s.size(128, 5), s.size(5760, 70), s.size(2880, 96)
    shape = (experts, n, width // 32, 16)
    blocks = torch.randint(0, 256, shape, dtype=torch.uint8, device=s.device)
    scales = torch.randint(119, 125, shape[:3], dtype=torch.uint8, device=s.device)
    bias = torch.zeros(experts, n, dtype=torch.bfloat16, device=s.device)
    values = torch.randn(experts, n, width, dtype=torch.bfloat16, device=s.device) / 50
    x, (rows, offsets), count = s.cases(18).normal(20, width), s.cases(18).assignment(20, [7]), 0.0
    last = torch.cat([offsets.new_zeros(experts - 1), offsets])
    for far, alone in (
        (permute(ExpertWeights(blocks, scales, bias)), permute(ExpertWeights(blocks[-1:], scales[-1:], bias[-1:]))),
        (Bf16Weights(values, bias), Bf16Weights(values[-1:], bias[-1:])),
    ):
        with one_tile(s, chip_for(x).moe[0]):
            expected = _moe_matmul.gate_up(x, rows, offsets, alone, limit=LIMIT, alpha=ALPHA)
            found = _moe_matmul.gate_up(x, rows, last, far, limit=LIMIT, alpha=ALPHA)
        count += same(type(far).__name__, expected, found)
    return count


def few_and_many_tokens_are_ordered(s: Setting) -> float:
    """Top-k with ties; then pairs to rows and back, by one program and by many, with experts that lie elsewhere."""
    logits = Cases(11, torch.float32, s.device).normal(s.size(500, 80), s.size(128, 8))
    logits[1, 1:3] = 9.0
    logits[2] = 0.0
    ids, weights = _routing.route(logits, 4)
    twin_ids, twin_weights = route_torch(logits, 4)
    same("ids", twin_ids, ids)
    alone_ids, alone_weights = _routing.route(logits[7:8], 4)
    same("alone", ids[7], alone_ids[0])
    same("alone", weights[7], alone_weights[0])
    some, _ = _routing.route(logits, 4, torch.tensor([30], device=s.device))
    same("alive", ids[:30], some[:30])
    assert bool((some[30:] == -1).all()), "rows that fill a step up chose somebody"
    found, experts, width = error(twin_weights, weights), logits.shape[1], 96
    up, down = s.cases(12).experts(experts - 2, 2 * width, width), s.cases(13).experts(experts - 2, width, width)
    slot_of = torch.arange(experts, dtype=torch.int32, device=s.device) - 2  # the lowest two lie elsewhere
    for tokens in (1, 64, logits.shape[0]):
        mine = torch.where(ids[:tokens] < 2, -1, ids[:tokens])
        x = s.cases(14).normal(tokens, width)
        loads, twin_loads = (torch.zeros(experts - 2, dtype=torch.int64, device=s.device) for _ in range(2))
        with mock.patch.dict("os.environ", {"SHOAL_KERNELS": "triton"}):
            y = expert_rows(x, mine, slot_of, permute(up), permute(down), loads, limit=LIMIT, alpha=ALPHA)
        with mock.patch.dict("os.environ", {"SHOAL_KERNELS": "torch"}):
            twin = expert_rows_torch(x, mine, slot_of, up, down, twin_loads, limit=LIMIT, alpha=ALPHA)
        found = max(found, error(twin, y[: len(twin)], roundings=16))
        same("loads", twin_loads, loads)
    return found


def a_recording_follows_the_routing(s: Setting) -> float:
    """Recorded with all tokens at the same experts, replayed with them elsewhere, one nowhere: rows and loads."""
    experts, width, count = s.size(32, 6), s.size(2880, 64), 0.0
    up, down = (permute(s.cases(n).experts(experts, rows, width)) for n, rows in ((30, 2 * width), (31, width)))
    slot_of = torch.arange(experts, dtype=torch.int32, device=s.device)
    for tokens in (s.size(16, 3), s.size(300, 70)):  # ordered by one program, and by many
        x, ids = s.cases(32).normal(tokens, width), torch.zeros(tokens, 4, dtype=torch.int32, device=s.device)
        ids += torch.arange(4, dtype=torch.int32, device=s.device)
        loads, out = torch.zeros(experts, dtype=torch.int64, device=s.device), x.new_zeros(tokens * 4, width)

        def rows(x: Tensor = x, ids: Tensor = ids, loads: Tensor = loads) -> Tensor:
            plan = _schedule.arrange(ids, slot_of, loads)
            h = _moe_matmul.gate_up(x, plan.rows, plan.offsets, up, limit=LIMIT, alpha=ALPHA, schedule=plan.schedule)
            return _moe_matmul.down(h, plan.offsets, down, places=plan.places, schedule=plan.schedule)

        def work(out: Tensor = out, rows: Callable[[], Tensor] = rows) -> None:
            out.copy_(rows())

        replay = recorded(s, work)
        logits = Cases(33, torch.float32, s.device).normal(tokens, experts)
        ids.copy_(_routing.route(logits, 4, torch.tensor([tokens - 1], device=s.device))[0])
        loads.zero_()
        replay()
        counted, served = loads.clone(), 4 * (tokens - 1)
        expected = rows()
        count += same("rows", expected[:served], out[:served])
        same("loads", torch.bincount(ids[ids >= 0].long(), minlength=experts), counted)
    return count


def rows_are_combined(s: Setting) -> float:
    """In top-k order with the residual, in fp32 bit for bit; then with the next layer's norm."""
    width = s.size(2880, 96)
    rows, x = s.cases(15).normal(9, 4, width), s.cases(17).normal(9, width)
    shares = Cases(16, torch.float32, s.device).normal(9, 4)
    found = 0.0
    for residual in (None, x):
        combined = _routing.combine(rows, shares, residual)
        twin = combine_torch(rows, shares, residual)
        if s.dtype == torch.float32:
            same("combine", twin, combined)
        found = max(found, error(twin, combined))
        total, normed = _routing.combine_normed(rows, shares, residual, s.cases(19).normal(width), 1e-5)
        same("sum before its norm", combined, total)
        same("norm behind the sum", _norm.rms_norm(combined, s.cases(19).normal(width), 1e-5), normed)
    return found


ALL: tuple[Check, ...] = (
    moe_is_right,
    moe_reads_other_formats,
    every_code_is_decoded,
    the_smallest_weights_are_decoded,
    moe_rows_are_independent,
    moe_tiles_agree,
    far_experts_are_reached,
    few_and_many_tokens_are_ordered,
    a_recording_follows_the_routing,
    rows_are_combined,
)
