"""One layer's mixture of experts, with the experts sharded over the ranks.

    ids, weights = top-k of the router's logits                (at the token's own rank)
    rows = for each (token, chosen expert): down(swiglu(gate_up(token)))   (at the expert's rank)
    out = sum over k of weights[k] * rows[k], in fp32, in top-k order      (at the token's own rank)

Because rows come back unsummed and are added at the token's own rank in top-k order, the result is bitwise the same
for every expert-parallel size.
"""

from __future__ import annotations

import torch
from torch import Tensor

from shoal.kernels import routing
from shoal.kernels.expert_rows import expert_rows
from shoal.workers.experts.exchange import Exchange
from shoal.workers.model.config import ModelConfig
from shoal.workers.model.timing import Stopwatch
from shoal.workers.model.weights import FREE, LayerExperts


class ExpertLayer:
    """The experts of one layer on this rank, and the exchange that reaches the others."""

    def __init__(self, config: ModelConfig, layer: int, experts: LayerExperts, exchange: Exchange) -> None:
        self._config = config
        self._layer = layer
        self.held = experts
        self._exchange = exchange
        slots = torch.full((config.num_experts,), -1, dtype=torch.int32)
        for slot, expert in enumerate(experts.ids):
            if expert != FREE:
                slots[expert] = slot
        self.slot_of = slots.to(experts.gate_up.blocks.device)
        self.load = torch.zeros(len(experts.ids), dtype=torch.int64, device=self.slot_of.device)

    def __call__(self, t_dp: Tensor, router_logits: Tensor, watch: Stopwatch) -> Tensor:
        """t_dp [T, H], router_logits [T, E] fp32 -> [T, H] in the dtype of t_dp. Raises ExchangeError."""
        with watch.phase("routing"):
            ids_dp, weights_dp = routing.route(router_logits, self._config.experts_per_token)
        with watch.phase("exchange"):
            handle = self._exchange.dispatch(self._layer, t_dp, ids_dp)
        with watch.phase("experts"):
            rows_ep = self._compute(handle.x_ep, handle.ids_ep)
        with watch.phase("exchange"):
            rows_dp = self._exchange.combine(rows_ep, handle)
        with watch.phase("routing"):
            return routing.combine(rows_dp, weights_dp)

    @property
    def alone(self) -> bool:
        """Whether this rank is its whole group: nothing travels."""
        return self._exchange.size == 1

    @property
    def loads(self) -> dict[int, int]:
        """Tokens computed per expert held here, since this epoch began."""
        tokens = zip(self.held.ids, self.load.tolist(), strict=True)
        return {expert: count for expert, count in tokens if expert != FREE}

    def _compute(self, x_ep: Tensor, ids_ep: Tensor) -> Tensor:
        """x_ep [R, H], ids_ep [R, k] with -1 for experts served elsewhere -> one row per pair served here, [P, H],
        in the order of the pairs in `ids_ep`."""
        c, held = self._config, self.held
        return expert_rows(
            x_ep, ids_ep, self.slot_of, held.gate_up, held.down, self.load,
            limit=c.swiglu_limit, alpha=c.swiglu_alpha,
        )  # fmt: skip
