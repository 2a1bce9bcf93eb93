"""Triton kernels of `sampling`: the vocabulary in blocks, one program per row and block, then one program per row.

    maxima   the largest logit of each block
    masses   what each block's kept tokens weigh
    choose   which block, and which token in it

Top-k and top-p keep a prefix of the tokens in order of (logit, id), so each is a *cut*: the bits of the lowest logit
kept, and how many of the tokens with exactly this logit. Its bits are found four at a time: one launch counts, or
weighs, the tokens under each of 16 continuations, the next one settles which continuation holds the cut.
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator"
# ... because the parameters of a kernel have no Python types: pointers, tensors and constants of Triton's language.

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from shoal.kernels import sampling as names
from shoal.kernels._launch import ROUND_EACH
from shoal.kernels.sampling import Chosen

_BLOCK = 4096
_UNIT = tl.constexpr(names.UNIT)
_FAINT = tl.constexpr(names.FAINT)
_INVERSE_TEMPERATURE = tl.constexpr(names.INVERSE_TEMPERATURE)
_DRAW = tl.constexpr(names.DRAW)
_TOP_K = tl.constexpr(names.TOP_K)
_TOP_P = tl.constexpr(names.TOP_P)
_MIN_WEIGHT = tl.constexpr(names.MIN_WEIGHT)
_MASK_ROW = tl.constexpr(names.MASK_ROW)
_SETTINGS = tl.constexpr(names.WIDTH)
_LARGEST = tl.constexpr((1 << 53) - 1)
_NOTHING = tl.constexpr(-(1 << 63))
_BARRED = tl.constexpr(8388607)  # the key of -inf: a cut that keeps all
_PASSES = 8  # of four bits each
_OPTIONS = {"num_warps": 8, **ROUND_EACH}


def sample(
    logits: Tensor, settings: Tensor, masks: Tensor | None, *, top_k: bool, top_p: bool, logprobs: int | None
) -> Chosen:
    rows, vocabulary = logits.shape
    blocks = triton.cdiv(vocabulary, _BLOCK)
    told, n = rows if logprobs is not None else 0, logprobs or 0

    def new(*shape: int, dtype: torch.dtype) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=logits.device)

    chosen = Chosen(
        new(rows, dtype=torch.int64),
        new(told, dtype=torch.float32),
        new(told, dtype=torch.float32),
        new(told, dtype=torch.int64),
        new(told, n, dtype=torch.int32),
        new(told, n, dtype=torch.float32),
    )
    if rows == 0:
        return chosen
    maxima, places = new(rows, blocks, dtype=torch.float32), new(rows, blocks, dtype=torch.int32)
    read = (logits, settings, settings if masks is None else masks, vocabulary, blocks)
    shape = {"MASKED": masks is not None, "BLOCK": _BLOCK, "BLOCKS": triton.next_power_of_2(blocks), **_OPTIONS}
    grid = (rows, blocks)
    _maxima_kernel[grid](*read, maxima, places, **shape)
    cut = None
    for mass in [False] * top_k + [True] * top_p:
        cut = _cut(read, maxima, cut, mass, shape)
    kept = new(rows, blocks, 3, dtype=torch.int64)
    found = (maxima, maxima if cut is None else cut, kept)
    flags = {"CUT": cut is not None, "TOLD": logprobs is not None}
    _masses_kernel[grid](*read, *found, **flags, **shape)
    _choose_kernel[(rows,)](*read, *found, places, *chosen[:4], **flags, **shape)
    if told * n:
        parts = new(rows, blocks, n, dtype=torch.int64)
        _top_kernel[grid](*read, parts, n, **shape)
        candidates = triton.next_power_of_2(blocks * n)
        _merge_top_kernel[(rows,)](parts, *chosen[4:], blocks * n, n, CANDIDATES=candidates, **_OPTIONS)
    return chosen


def _cut(
    read: tuple[Tensor | int, ...], maxima: Tensor, before: Tensor | None, mass: bool, shape: dict[str, int]
) -> Tensor:
    """The cut of every row that has this filter, [R,2]; the cut `before` for the others."""
    rows, blocks = maxima.shape
    counts = torch.empty(2, rows, blocks, 16, dtype=torch.int64, device=maxima.device)
    states = torch.empty(2, rows, 2, dtype=torch.int64, device=maxima.device)
    old = states[0] if before is None else before
    flags = {"CUT": before is not None, "MASS": mass, **shape}
    for number in range(_PASSES):
        here, there = number % 2, 1 - number % 2
        _count_kernel[(rows, blocks)](
            *read, maxima, old, counts[there], states[there], counts[here], states[here], 28 - 4 * number, **flags
        )
    last = (_PASSES - 1) % 2
    cut = torch.empty(rows, 2, dtype=torch.int64, device=maxima.device)
    _settle_kernel[(rows,)](*read, maxima, old, counts[last], states[last], cut, **flags)
    return cut


@triton.jit
def _setting(settings, row, which: tl.constexpr):
    return tl.load(settings + row * _SETTINGS + which)


@triton.jit
def _inverse_temperature(settings, row):
    return _setting(settings, row, _INVERSE_TEMPERATURE).to(tl.int32).to(tl.float32, bitcast=True)


@triton.jit
def _block_of(logits, settings, masks, row, block, V, MASKED: tl.constexpr, BLOCK: tl.constexpr):
    """(ids, logits) of one block, -inf for what is barred or outside the vocabulary."""
    ids = block * BLOCK + tl.arange(0, BLOCK)
    inside = ids < V
    if MASKED:
        mask_row = _setting(settings, row, _MASK_ROW)
        words = tl.load(masks + mask_row * tl.cdiv(V, 32) + ids // 32, mask=inside & (mask_row >= 0), other=-1)
        inside &= ((words >> (ids % 32)) & 1) == 1
    # Adding zero makes of -0 a 0, so that equal logits have equal bits.
    return ids, tl.load(logits + row.to(tl.int64) * V + ids, mask=inside, other=-float("inf")) + 0.0


@triton.jit
def _maximum(maxima, row, blocks, BLOCKS: tl.constexpr):
    b = tl.arange(0, BLOCKS)
    return tl.max(tl.load(maxima + row * blocks + b, mask=b < blocks, other=-float("inf")), 0)


@triton.jit
def _weights(values, maximum, inverse_temperature):
    """floor(2^44 e^((values - maximum) / temperature)), operation by operation as `exact.exp`."""
    x = tl.maximum((values - maximum) * inverse_temperature, _FAINT)
    n = (x * 1.44269504088896341 + 12582912.0) - 12582912.0  # to the nearest whole number
    r = x - n * 0.693359375
    r = r + n * 2.12194440e-4
    p = r * 1.9875691500e-4 + 1.3981999507e-3
    p = p * r + 8.3334519073e-3
    p = p * r + 4.1665795894e-2
    p = p * r + 1.6666665459e-1
    p = p * r + 5.0000001201e-1
    y = p * (r * r) + r + 1.0
    power = ((n.to(tl.int32) + 127) << 23).to(tl.float32, bitcast=True)
    return (y * power * _UNIT).to(tl.int64)


@triton.jit
def _keys(values):
    """Whole numbers 0 .. 2^32 - 1 in the order of the logits."""
    bits = values.to(tl.int32, bitcast=True)
    return (bits ^ ((bits >> 31) & 0x7FFFFFFF)).to(tl.int64) + 2147483648


@triton.jit
def _logit_of(key):
    bits = (key - 2147483648).to(tl.int32)
    return (bits ^ ((bits >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)


@triton.jit
def _share(total, part):
    """total * part / 2^53 as (whole, whether there is a rest); 0 <= part < 2^53."""
    shifted = part.to(tl.uint64) << 11
    whole = tl.umulhi(total.to(tl.uint64), shifted).to(tl.int64)
    return whole, (total.to(tl.uint64) * shifted) != 0


@triton.jit
def _maxima_kernel(
    logits, settings, masks, V, blocks, maxima, places,
    MASKED: tl.constexpr, BLOCK: tl.constexpr, BLOCKS: tl.constexpr,
):  # fmt: skip
    """The largest logit of each block and the lowest id that has it."""
    row, block = tl.program_id(0), tl.program_id(1)
    ids, values = _block_of(logits, settings, masks, row, block, V, MASKED, BLOCK)
    largest = tl.max(values, 0)
    tl.store(maxima + row * blocks + block, largest)
    tl.store(places + row * blocks + block, tl.min(tl.where(values == largest, ids, 2147483647), 0))


@triton.jit
def _settle(settings, row, counts, states, blocks, first, MASS: tl.constexpr, BLOCKS: tl.constexpr):
    """(bits known so far, how much of what is under them lies before the cut) after one more count of 16."""
    b, nibble = tl.arange(0, BLOCKS), tl.arange(0, 16)
    at = counts + (row * blocks + b[:, None]) * 16 + nibble[None, :]
    count = tl.sum(tl.load(at, mask=(b < blocks)[:, None], other=0), 0)
    prefix, need = tl.load(states + row * 2), tl.load(states + row * 2 + 1)
    if first:
        total = tl.sum(count, 0)
        if MASS:
            whole, rest = _share(total, tl.minimum(_setting(settings, row, _TOP_P), _LARGEST))
            need = tl.maximum(whole + rest.to(tl.int64), 1)
        else:
            need = tl.minimum(_setting(settings, row, _TOP_K), total)
    above = tl.sum(count, 0) - tl.cumsum(count, 0)  # of the higher continuations
    chosen = tl.max(tl.where(above + count >= need, nibble, 0), 0)
    return prefix * 16 + chosen, need - tl.sum(tl.where(nibble == chosen, above, 0), 0)


@triton.jit
def _filtered(settings, row, MASS: tl.constexpr):
    """Whether this row has the filter, and draws at all."""
    has = _setting(settings, row, _TOP_P) <= _LARGEST if MASS else _setting(settings, row, _TOP_K) > 0
    return has & (_setting(settings, row, _DRAW) >= 0)


@triton.jit(do_not_specialize=["shift"])
def _count_kernel(
    logits, settings, masks, V, blocks, maxima, cut, old_counts, old_states, counts, states, shift,
    CUT: tl.constexpr, MASS: tl.constexpr, MASKED: tl.constexpr, BLOCK: tl.constexpr, BLOCKS: tl.constexpr,
):  # fmt: skip
    """How many tokens of a block, or what weight, under each continuation of the bits known so far."""
    row, block = tl.program_id(0), tl.program_id(1)
    if _filtered(settings, row, MASS):
        prefix, need = tl.cast(0, tl.int64), tl.cast(0, tl.int64)
        if shift < 28:
            prefix, need = _settle(settings, row, old_counts, old_states, blocks, shift == 24, MASS, BLOCKS)
        if block == 0:
            tl.store(states + row * 2, prefix)
            tl.store(states + row * 2 + 1, need)
        _, values = _block_of(logits, settings, masks, row, block, V, MASKED, BLOCK)
        inverse, maximum = _inverse_temperature(settings, row), _maximum(maxima, row, blocks, BLOCKS)
        weight, key = _weights(values, maximum, inverse), _keys(values)
        under = (weight >= _setting(settings, row, _MIN_WEIGHT)) & (key >> (shift + 4) == prefix)
        lowest, ties = tl.cast(_BARRED, tl.int64), tl.cast(0, tl.int64)
        if CUT:
            lowest, ties = tl.load(cut + row * 2), tl.load(cut + row * 2 + 1)
            under &= key > lowest
            # All tokens at the cut weigh the same; the first program speaks for those kept.
            ties *= ((block == 0) & (lowest >> (shift + 4) == prefix)).to(tl.int64)
            if MASS:
                ties *= _weights(_logit_of(lowest), maximum, inverse)
        amount = tl.where(under, weight, 0) if MASS else under.to(tl.int64)
        at = counts + (row * blocks + block) * 16
        if tl.max(amount, 0) + ties > 0:
            nibble = (key >> shift) & 15
            for continuation in range(16):
                mine = tl.sum(tl.where(nibble == continuation, amount, 0), 0)
                tl.store(at + continuation, mine + tl.where(((lowest >> shift) & 15) == continuation, ties, 0))
        else:
            tl.store(at + tl.arange(0, 16), tl.zeros((16,), tl.int64))


@triton.jit
def _settle_kernel(
    logits, settings, masks, V, blocks, maxima, old, counts, states, cut,
    CUT: tl.constexpr, MASS: tl.constexpr, MASKED: tl.constexpr, BLOCK: tl.constexpr, BLOCKS: tl.constexpr,
):  # fmt: skip
    """The cut itself, or for rows without this filter the one before; without any, one that keeps all."""
    row = tl.program_id(0)
    lowest, ties = tl.cast(_BARRED, tl.int64), tl.cast(0, tl.int64)
    if CUT:
        lowest, ties = tl.load(old + row * 2), tl.load(old + row * 2 + 1)
    if _filtered(settings, row, MASS):
        lowest, ties = _settle(settings, row, counts, states, blocks, False, MASS, BLOCKS)
        if MASS:
            maximum, inverse = _maximum(maxima, row, blocks, BLOCKS), _inverse_temperature(settings, row)
            each = _weights(_logit_of(lowest), maximum, inverse)
            ties = (ties + each - 1) // each
    tl.store(cut + row * 2, lowest)
    tl.store(cut + row * 2 + 1, ties)


@triton.jit
def _masses_kernel(
    logits, settings, masks, V, blocks, maxima, cut, kept,
    CUT: tl.constexpr, TOLD: tl.constexpr, MASKED: tl.constexpr, BLOCK: tl.constexpr, BLOCKS: tl.constexpr,
):  # fmt: skip
    """Of each block: the weight above the cut, how many tokens at it, and the weight of all at temperature 1."""
    row, block = tl.program_id(0), tl.program_id(1)
    _, values = _block_of(logits, settings, masks, row, block, V, MASKED, BLOCK)
    maximum = _maximum(maxima, row, blocks, BLOCKS)
    at = kept + (row * blocks + block) * 3
    if _setting(settings, row, _DRAW) >= 0:
        weight = _weights(values, maximum, _inverse_temperature(settings, row))
        enough = weight >= _setting(settings, row, _MIN_WEIGHT)
        if CUT:
            key, lowest = _keys(values), tl.load(cut + row * 2)
            tl.store(at + 1, tl.sum((enough & (key == lowest)).to(tl.int64), 0))
            enough &= key > lowest
        tl.store(at, tl.sum(tl.where(enough, weight, 0), 0))
    if TOLD:
        tl.store(at + 2, tl.sum(_weights(values, maximum, 1.0), 0))


@triton.jit
def _choose_kernel(
    logits, settings, masks, V, blocks, maxima, cut, kept, places, out_ids, out_logits, out_maxima, out_totals,
    CUT: tl.constexpr, TOLD: tl.constexpr, MASKED: tl.constexpr, BLOCK: tl.constexpr, BLOCKS: tl.constexpr,
):  # fmt: skip
    """The token of one row."""
    row, b = tl.program_id(0), tl.arange(0, BLOCKS)
    inside = b < blocks
    largest = tl.load(maxima + row * blocks + b, mask=inside, other=-float("inf"))
    maximum = tl.max(largest, 0)
    best = tl.load(places + row * blocks + b, mask=inside, other=2147483647)
    chosen = tl.min(tl.where(largest == maximum, best, 2147483647), 0).to(tl.int64)
    draw = _setting(settings, row, _DRAW)
    at = kept + (row * blocks + b) * 3
    if draw >= 0:
        inverse = _inverse_temperature(settings, row)
        mass = tl.load(at, mask=inside, other=0)
        lowest, ties = tl.cast(_BARRED, tl.int64), tl.cast(0, tl.int64)
        left = tl.zeros((BLOCKS,), tl.int64)
        if CUT:
            lowest, ties = tl.load(cut + row * 2), tl.load(cut + row * 2 + 1)
            equal = tl.load(at + 1, mask=inside, other=0)
            left = ties - (tl.cumsum(equal, 0) - equal)  # how many at the cut are still to be kept when a block begins
            kept_equal = tl.minimum(tl.maximum(left, 0), equal)
            mass += kept_equal * _weights(_logit_of(lowest), maximum, inverse)
        until = tl.cumsum(mass, 0)
        target, _ = _share(tl.sum(mass, 0), draw)
        block = tl.sum((until <= target).to(tl.int32), 0)
        mine = b == block
        target -= tl.sum(tl.where(mine, until - mass, 0), 0)
        _, values = _block_of(logits, settings, masks, row, block, V, MASKED, BLOCK)
        weight = _weights(values, maximum, inverse)
        enough = weight >= _setting(settings, row, _MIN_WEIGHT)
        if CUT:
            key = _keys(values)
            at_cut = enough & (key == lowest)
            first = tl.cumsum(at_cut.to(tl.int64), 0) <= tl.sum(tl.where(mine, left, 0), 0)
            enough &= (key > lowest) | (at_cut & first)
        passed = tl.cumsum(tl.where(enough, weight, 0), 0) <= target
        chosen = (block * BLOCK + tl.sum(passed.to(tl.int32), 0)).to(tl.int64)
    chosen = tl.minimum(chosen, V - 1)  # logits that are no numbers choose something: the next step reads its embedding
    tl.store(out_ids + row, chosen)
    if TOLD:
        tl.store(out_logits + row, tl.load(logits + row.to(tl.int64) * V + chosen))
        tl.store(out_maxima + row, maximum)
        tl.store(out_totals + row, tl.sum(tl.load(at + 2, mask=inside, other=0), 0))


@triton.jit
def _top_kernel(
    logits, settings, masks, V, blocks, parts, n,
    MASKED: tl.constexpr, BLOCK: tl.constexpr, BLOCKS: tl.constexpr,
):  # fmt: skip
    """The n likeliest of each block, one after another: logit and id in one number, the lower id the larger."""
    row, block = tl.program_id(0), tl.program_id(1)
    ids, values = _block_of(logits, settings, masks, row, block, V, MASKED, BLOCK)
    rank = ((_keys(values) - 2147483648) << 32) | (2147483647 - ids).to(tl.int64)
    rank = tl.where(values > -float("inf"), rank, _NOTHING)
    for i in range(n):
        best = tl.max(rank, 0)
        tl.store(parts + (row * blocks + block) * n + i, best)
        rank = tl.where(rank == best, _NOTHING, rank)


@triton.jit
def _merge_top_kernel(parts, out_ids, out_logits, candidates, n, CANDIDATES: tl.constexpr):
    """The n likeliest of a row from those of its blocks."""
    row, c = tl.program_id(0), tl.arange(0, CANDIDATES)
    rank = tl.load(parts + row * candidates + c, mask=c < candidates, other=_NOTHING)
    for i in range(n):
        best = tl.max(rank, 0)
        there = best > _NOTHING
        token = 2147483647 - (best & 0xFFFFFFFF).to(tl.int32)
        tl.store(out_ids + row * n + i, tl.where(there, token, -1))
        tl.store(out_logits + row * n + i, tl.where(there, _logit_of((best >> 32) + 2147483648), -float("inf")))
        rank = tl.where(rank == best, _NOTHING, rank)
