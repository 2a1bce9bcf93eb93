"""`shoal.cluster.plan.roofline` and `footprint`: the published reference tables, reproduced by other code."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from shoal.cluster.checkpoint.presets import PRESETS
from shoal.cluster.plan import roofline
from shoal.cluster.plan.footprint import Footprint
from shoal.cluster.plan.gpu import GPUS

BIG, SMALL = Footprint(PRESETS["120b"].config()), Footprint(PRESETS["20b"].config())
H200 = GPUS["h200"]
BATCHES, CONTEXTS = (1, 4, 16, 64, 256), (1024, 8192, 32768)

# Output tok/s of one H200 at batch 1, 4, 16, 64, 256; a row per context of 1k, 8k, 32k.
DECODE = {
    "120b": ((852, 1632, 2451, 4679, 14688), (810, 1483, 2130, 3634, 7720), (692, 1130, 1470, 2058, 2939)),
    "20b": ((1151, 2545, 5803, 19094, 55454), (1099, 2305, 4688, 10713, 16949), (952, 1741, 2827, 4277, 5014)),
}
# The same at 1k and 8k for groups of 2, 4 and 8 ranks; the last two columns with 25 us each way, at batch 16 and 256.
GROUPS = {
    ("120b", 2): ((970, 2298, 4176, 8671, 28204, 2841, 23537), (915, 2146, 3701, 6847, 15110, 2613, 13659)),
    ("120b", 4): ((1040, 2919, 6465, 15381, 52262, 3743, 38218), (978, 2793, 5881, 12441, 28988, 3539, 24080)),
    ("120b", 8): ((1099, 3482, 9135, 25326, 91126, 4505, 55540), (1030, 3305, 8536, 21201, 53604, 4354, 38931)),
    ("20b", 2): ((1299, 3475, 9326, 32660, 98779, 5488, 67517), (1233, 3244, 7830, 19569, 32672, 4933, 28333)),
    ("20b", 4): ((1383, 4312, 13628, 50665, 162104, 6739, 92112), (1309, 4130, 11959, 33356, 60935, 6304, 47397)),
    ("20b", 8): ((1460, 5004, 18275, 69944, 238576, 7709, 112625), (1378, 4760, 16711, 51498, 107383, 7416, 71429)),
}


def test_bytes_and_operations() -> None:
    """Weights, KV and arithmetic of both models, to the digits that were printed."""
    for model, whole, experts, dense, active in (
        (BIG, 65.25, 60.99, 1.939, 5.13), (SMALL, 13.76, 10.17, 1.279, 3.61),
    ):  # fmt: skip
        assert whole == round(model.checkpoint_bytes / 1e9, 2)
        assert experts == round(model.experts_bytes / 1e9, 2)
        assert dense == round(model.dense_bytes / 1e9, 3)
        assert round(model.unembedding_bytes / 1e9, 3) == 1.158
        assert round(model.expert_bytes / 1e6, 2) == 13.24
        assert active == round((model.active_parameters + model.unembedding_parameters) / 1e9, 2)
    assert [9.29, 10.35, 13.97] == [round(BIG.prefill_flops(c) / 1e9, 2) for c in CONTEXTS]
    assert [6.18, 6.89, 9.30] == [round(SMALL.prefill_flops(c) / 1e9, 2) for c in CONTEXTS]
    assert [42.5, 306.7, 1212.7] == [round(BIG.kv_read(c) / 1e6, 1) for c in CONTEXTS]
    assert [28.3, 204.5, 808.5] == [round(SMALL.kv_read(c) / 1e6, 1) for c in CONTEXTS]


@pytest.mark.parametrize(("name", "model"), [("120b", BIG), ("20b", SMALL)])
def test_decoding_on_one_gpu(name: str, model: Footprint) -> None:
    """Every cell of the table."""
    for context, expected in zip(CONTEXTS, DECODE[name], strict=True):
        found = [round(roofline.decode(model, H200, batch, context).tokens_per_second) for batch in BATCHES]
        assert list(expected) == found


@pytest.mark.parametrize(("name", "ranks"), GROUPS)
def test_decoding_in_a_group(name: str, ranks: int) -> None:
    """Within what two simulations of the busiest rank differ by; without chance where every expert is hit."""
    model = {"120b": BIG, "20b": SMALL}[name]
    for context, expected in zip(CONTEXTS, GROUPS[name, ranks], strict=False):
        found = [roofline.decode(model, H200, batch, context, ranks).tokens_per_second for batch in BATCHES]
        late = [roofline.decode(model, H200, batch, context, ranks, 25e-6).tokens_per_second for batch in (16, 256)]
        assert list(expected) == pytest.approx([*found, *late], rel=0.02)
        assert expected[4] == pytest.approx(found[4], rel=0.002)


def test_prefill() -> None:
    """Milliseconds of one prompt; a short one is bound by reading the weights."""
    assert [14.6, 107.3, 579.6] == [round(roofline.prefill(BIG, H200, c) * 1e3, 1) for c in CONTEXTS]
    assert [8.0, 71.4, 385.9] == [round(roofline.prefill(SMALL, H200, c) * 1e3, 1) for c in CONTEXTS]


def test_saturated() -> None:
    """The bound beside the best published output rates: 1k in, 1k out."""
    assert round(roofline.saturated(BIG, H200, 700, 1000, 1000)) == 21272
    assert round(roofline.saturated(SMALL, H200, 2048, 1000, 1000)) == 53883
    found = [round(roofline.saturated(BIG, H200, n, 1024, 1024)) for n in (4, 8, 16, 32, 64)]
    assert [1590, 1946, 2358, 3018, 4350] == found


def test_data_sheet_bounds_of_published_runs() -> None:
    """Batch 1 on other chips."""
    h100, b200 = replace(GPUS["h100"], bandwidth=3.35e12), replace(GPUS["b200"], bandwidth=8.0e12)
    assert round(roofline.decode(BIG, h100, 1, 256).tokens_per_second) == 668
    assert round(roofline.decode(SMALL, h100, 1, 256).tokens_per_second) == 901
    assert round(roofline.decode(SMALL, b200, 1, 256).tokens_per_second) == 2152


def test_the_busiest_rank_lies_between_the_mean_and_everything() -> None:
    """Never below an even share of the experts hit, never above its own; the same on every call."""
    for tokens in (1, 3, 17, 200):
        for ranks in (2, 4, 8):
            found = roofline.busiest_hit(32, 4, tokens, ranks)
            assert roofline.experts_hit(32, 4, tokens) / ranks * 0.99 <= found <= 32 / ranks
            roofline.busiest_hit.cache_clear()
            assert found == roofline.busiest_hit(32, 4, tokens, ranks)


def test_other_ranks_against_counting() -> None:
    """The closed form equals the mean over all choices of two of six experts on three ranks."""
    choices = [(a, b) for a in range(6) for b in range(a)]
    counted = sum(len({a // 2, b // 2} - {0}) for a, b in choices) / len(choices)
    assert math.isclose(counted, roofline.other_ranks(6, 2, 3))
