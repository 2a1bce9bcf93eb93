"""One layer's mixture of experts, with the experts sharded over the ranks.

    ids, weights = top-k of the router's logits                (at the token's own rank)
    rows = for each (token, chosen expert): down(swiglu(gate_up(token)))   (at the expert's rank)
    out = sum over k of weights[k] * rows[k], in fp32, in top-k order      (at the token's own rank)

Because rows come back unsummed and are added at the token's own rank in top-k order, the result is bitwise the same
for every expert-parallel size. The first and the last line are the model's, what is between them is here.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from shoal.kernels.expert_rows import expert_rows
from shoal.workers.experts.exchange import Exchange, Handle
from shoal.workers.model.config import ModelConfig
from shoal.workers.model.timing import Stopwatch
from shoal.workers.model.weights import FREE, LayerExperts


class ExpertLayer:
    """The experts of one layer on this rank, and the exchange that reaches the others.

    What the kernels read of it stays where it is from one epoch to the next, as long as the slots do: a recorded step
    then reads the new placement. `before` is the same layer of the epoch that ends here.
    """

    def __init__(
        self,
        config: ModelConfig,
        layer: int,
        experts: LayerExperts,
        exchange: Exchange,
        before: ExpertLayer | None = None,
    ) -> None:
        self._config = config
        self._layer = layer
        self.held = experts
        self.exchange = exchange
        self.slot_of: Tensor
        self.load: Tensor
        slots = torch.full((config.num_experts,), -1, dtype=torch.int32)
        for slot, expert in enumerate(experts.ids):
            if expert != FREE:
                slots[expert] = slot
        if before is not None and before.load.numel() == len(experts.ids):
            self.slot_of, self.load = before.slot_of, before.load
            self.slot_of.copy_(slots)
            self.load.zero_()
        else:
            self.slot_of = slots.to(experts.gate_up.blocks.device)
            self.load = torch.zeros(len(experts.ids), dtype=torch.int64, device=self.slot_of.device)

    def __call__(self, t_dp: Tensor, ids_dp: Tensor, watch: Stopwatch) -> Tensor:
        """t_dp [T, H], ids_dp i32 [T, k] -> [T, k, H], unweighted. Raises ExchangeError."""
        with watch.phase("exchange"):
            handle = self.exchange.dispatch(self._layer, t_dp, ids_dp)
        with watch.phase("experts"):
            rows_ep = self.served(self.compute(handle.x_ep, handle.ids_ep), handle)
        with watch.phase("exchange"):
            return self.exchange.combine(rows_ep, handle)

    @property
    def alone(self) -> bool:
        """Whether this rank is its whole group: nothing travels."""
        return self.exchange.size == 1

    @property
    def loads(self) -> dict[int, int]:
        """Tokens computed per expert held here, since this epoch began. Waits for the device."""
        return self.by_expert(self.load.tolist())

    def by_expert(self, slots: Sequence[int]) -> dict[int, int]:
        """Figures by slot as figures by expert."""
        return {expert: figure for expert, figure in zip(self.held.ids, slots, strict=True) if expert != FREE}

    @property
    def addresses(self) -> tuple[int, ...]:
        """Where what the kernels read and write of this layer lies."""
        weights = (t for w in (self.held.gate_up, self.held.down) for t in (w.blocks, w.scales, w.bias))
        return tuple(t.data_ptr() for t in (*weights, self.slot_of, self.load))

    @staticmethod
    def served(rows_ep: Tensor, handle: Handle) -> Tensor:
        """What `compute` made, without room for pairs that are served elsewhere."""
        return rows_ep[: sum(handle.rows_of_peer)]

    def compute(self, x_ep: Tensor, ids_ep: Tensor) -> Tensor:
        """x_ep [R, H], ids_ep [R, k] with -1 for experts served elsewhere -> one row per pair served here, [P, H],
        in the order of the pairs in `ids_ep`. There may be rows of nobody behind them."""
        c, held = self._config, self.held
        return expert_rows(
            x_ep, ids_ep, self.slot_of, held.gate_up, held.down, self.load,
            limit=c.swiglu_limit, alpha=c.swiglu_alpha,
        )  # fmt: skip
