"""OpenAI's `triton_kernels` side by side with ours: the same weights, the same tokens, the same experts, in one run.

The package is not ours and not here: it is taken from where python finds it, or from a folder that is named. What it
computes is compared with ours before it is timed; where it cannot be had or does not agree, a line says so instead.
"""

from __future__ import annotations

import importlib
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from shoal.kernels.mxfp4 import ExpertWeights
from tests.gpu.moe_timing import ALPHA, BATCHES, EXPERT_BYTES, LIMIT, WORKS, Layer, Work, works
from tests.gpu.stopwatch import microseconds

NAME = "triton_kernels"
MODELS = (("20b", 32), ("120b", 128))  # experts of a layer
CLOSE = 0.02  # root mean square of the difference by that of our own: bf16 in another order of summing


class Peer:
    """Its grouped matmuls over one of our layers."""

    def __init__(self, layer: Layer) -> None:
        self._matmul = importlib.import_module(f"{NAME}.matmul")
        self._tensor = importlib.import_module(f"{NAME}.tensor")
        self._layout = importlib.import_module(f"{NAME}.tensor_details.layout")
        swiglu = importlib.import_module(f"{NAME}.swiglu").swiglu_fn
        specs = self._matmul.FnSpecs("swiglu", swiglu, ("alpha", "limit"), reduction_n=2)
        self._activation = self._matmul.FusedActivation(specs, (ALPHA, LIMIT))
        self._up, self._down = (self._weights(w) for w in layer.published)

    def _weights(self, w: ExpertWeights) -> tuple[Any, Tensor, Any]:
        """(values, bias, precision) as it wants them: inputs first, in the order that it likes best on this GPU."""
        experts, rows, groups, _ = w.blocks.shape
        values = w.blocks.view(experts, rows, groups * 16).transpose(1, 2)
        t, make = self._tensor, self._layout
        order = _layout(make.make_default_matmul_mxfp4_w_layout)
        scale_order = _layout(make.make_default_matmul_mxfp4_w_scale_layout, num_warps=8)
        laid = t.convert_layout(t.wrap_torch_tensor(values, dtype=t.FP4), order[0], **order[1])
        scales = t.convert_layout(t.wrap_torch_tensor(w.scales.transpose(1, 2)), scale_order[0], **scale_order[1])
        config = self._matmul.PrecisionConfig
        said = {"b_microblock_size": 32} if "b_microblock_size" in {f.name for f in fields(config)} else {}
        return laid, w.bias.float(), config(b_mx_scale=scales, **said)

    def call(self, work: Work) -> Callable[[], Tensor]:
        """Both matmuls of one batch, its order made before, as ours is."""
        pairs, plan = work.ids.numel(), work.plan
        ragged = self._tensor.make_ragged_tensor_metadata(plan.offsets.diff(), pairs)

        def run() -> Tensor:
            up, up_bias, up_precision = self._up
            down, down_bias, down_precision = self._down
            h = self._matmul.matmul(
                work.x, up, up_bias, a_ragged_metadata=ragged, gather_indx=plan.rows, precision_config=up_precision,
                fused_activation=self._activation,
            )  # fmt: skip
            y: Tensor = self._matmul.matmul(
                h, down, down_bias, a_ragged_metadata=ragged, scatter_indx=plan.places, precision_config=down_precision
            )
            return y

        return run


def _layout(make: Callable[..., Any], **options: int) -> tuple[Any, dict[str, Any]]:
    """A layout and its options: newer versions count axes from the end, older ones from the front, and give both."""
    made = make(mx_axis=-2, **options)
    if not isinstance(made, tuple):
        return made, {}
    layout, more = make(mx_axis=1, **options)
    return layout, more


def difference(expected: Tensor, found: Tensor) -> float:
    """Root mean square of the difference by that of what is expected; inf where something is not finite."""
    a, b = expected.double(), found.double().view(expected.shape)
    worst = float((a - b).square().mean().sqrt() / a.square().mean().sqrt())
    return worst if worst == worst else float("inf")


def rows(until: float, folder: Path | None) -> Iterator[dict[str, Any]]:
    """Rows of the record, one after another, until the clock (time.monotonic) says `until`."""
    if folder is not None:
        sys.path.insert(0, str(folder))
    try:
        importlib.import_module(f"{NAME}.matmul")
    except Exception as error:  # it may be there and not fit this Triton
        yield {"case": NAME, "skipped": f"left out: {type(error).__name__}: {error}"}
        return
    for name, experts in MODELS:
        layers = [Layer.random(seed, experts) for seed in range(2)]
        try:
            peers = [Peer(layer) for layer in layers]
            for batch in dict.fromkeys((*BATCHES[::2], BATCHES[-1])):
                if time.monotonic() > until:
                    yield {"case": f"{name} batch {batch} and more", "skipped": "the time given was over"}
                    break
                yield _side_by_side(f"{name} batch {batch}", peers, layers, batch)
        except Exception as error:  # of a package that changes; what was measured before stays
            yield {"case": f"{name}, {NAME}", "skipped": f"left out: {type(error).__name__}: {error}"}
        del layers
        torch.cuda.empty_cache()


def _side_by_side(case: str, peers: list[Peer], layers: list[Layer], batch: int) -> dict[str, Any]:
    made = works(layers, batch, WORKS if batch <= 256 else 4)
    theirs = [peers[i % len(peers)].call(work) for i, work in enumerate(made)]
    apart = difference(made[0].experts(), theirs[0]())
    if apart > CLOSE:
        return {"case": f"{case}, {NAME}", "skipped": f"left out: its results differ by {apart:.3f}"}
    mine, other = [], []
    for _ in range(3):  # in turn, so that a clock that changes its mind meets both
        mine.append(microseconds([work.experts for work in made], 3))
        other.append(microseconds(theirs, 3))
    ratios = sorted(b / a for a, b in zip(mine, other, strict=True))
    us, hit = sorted(mine)[1], sum(work.hit() for work in made) / len(made)
    return {
        "case": f"{case}, beside {NAME}", "value": round(us, 2), "unit": "us", "peer": NAME,
        "peer_value": round(sorted(other)[1], 2), "ratio": round(ratios[1], 3),
        "spread": [round(ratios[0], 3), round(ratios[2], 3)], "tb_s": round(hit * EXPERT_BYTES / us / 1e6, 3),
        "difference": float(f"{apart:.2g}"),
    }  # fmt: skip
