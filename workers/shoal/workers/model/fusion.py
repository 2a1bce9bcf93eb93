"""All layers of a model as one native call, for a rank that holds every expert."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from shoal.kernels import native
from shoal.kernels.attention import BlockShape
from shoal.kernels.native.forward import Ends, Forward, LayerParts
from shoal.workers.model.config import ModelConfig
from shoal.workers.model.kv_cache import KvCache
from shoal.workers.model.moe import ExpertLayer
from shoal.workers.model.weights import DenseWeights


def fuse(
    config: ModelConfig,
    weights: DenseWeights,
    experts: Sequence[ExpertLayer],
    kv: KvCache,
    heads: BlockShape,
    rope: tuple[Tensor, Tensor],
) -> Forward:
    """The call. It reads the tensors given here, in place, and keeps them alive."""
    layers = [
        LayerParts(
            attention=attention,
            cache=(kv.keys[i], kv.values[i]),
            window=config.layer_windows[i],
            router_norm=router.norm,
            router=native.pack_linear(router.weight),
            router_bias=router.bias,
            slot_of=layer.slot_of,
            gate_up=native.pack_experts(layer.held.gate_up),
            down=native.pack_experts(layer.held.down),
            loads=layer.load,
        )
        for i, (attention, router, layer) in enumerate(zip(weights.attention, weights.routers, experts, strict=True))
    ]
    ends = Ends(weights.embedding, weights.norm, native.pack_linear(weights.unembedding), rope)
    return Forward(
        native.library(), layers, ends, heads, config.experts_per_token,
        limit=config.swiglu_limit, alpha=config.swiglu_alpha,
    )  # fmt: skip
