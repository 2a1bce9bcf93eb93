"""The exchange over torch.distributed: gloo between CPUs, NCCL between GPUs.

Each message ends in one extra row, the *seal*: (epoch, step, layer, phase, rows, checksum). A stale, foreign or
damaged message is refused before its rows are used.

The sizes follow from one small all-gather of top-k ids per layer: every rank then knows the whole schedule. It is
sealed too, in front.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch
from torch import Tensor

from shoal.workers.errors import ExchangeError
from shoal.workers.experts.exchange import Agreement, Handle, Traffic, Wish
from shoal.workers.experts.placement import Placement
from shoal.workers.experts.process_group import ProcessGroup

IDS, DISPATCH, COMBINE = 0, 1, 2
SEAL_WORDS = 6
_COUNT = 4  # the word that says how many rows


class GroupExchange:
    """Implements `Exchange` for two ranks and more."""

    def __init__(self, group: ProcessGroup, placement: Placement, epoch: int, top_k: int, device: torch.device) -> None:
        self.traffic = Traffic()
        self._group = group
        self._epoch = epoch
        self._step = 0
        self._bound = 0
        self._top_k = top_k
        self._device = device
        ranks, experts = range(group.size), range(len(placement.holders[0]))
        # _serving[layer][source, expert]: the rank that computes the expert for tokens of the source
        self._serving = [
            torch.tensor([[placement.serving_rank(layer, e, s) for e in experts] for s in ranks], device=device)
            for layer in range(placement.num_layers)
        ]

    @property
    def rank(self) -> int:
        return self._group.rank

    @property
    def size(self) -> int:
        return self._group.size

    def close(self) -> None:
        self._group.close()

    def agree(self, step: int, tokens_dp: int, wishes: Wish) -> Agreement:
        began = time.perf_counter()
        all_ranks = self.compare([self._epoch, step, tokens_dp, int(wishes)])
        self.traffic.waited_seconds += time.perf_counter() - began
        for rank, (epoch, peer_step, _, _) in enumerate(all_ranks):
            if (epoch, peer_step) != (self._epoch, step):
                raise ExchangeError(
                    f"rank {rank} is at epoch {epoch} step {peer_step}, this rank at epoch {self._epoch} step {step}"
                )
        self._step = step
        self._bound = max(row[2] for row in all_ranks)
        asked = Wish.NONE
        for row in all_ranks:
            asked |= Wish(row[3])
        return Agreement(self._bound, sum(row[2] for row in all_ranks), asked)

    def compare(self, words: Sequence[int]) -> list[list[int]]:
        gathered: list[list[int]] = self._group.all_gather(torch.tensor(words, device=self._device)).tolist()
        return gathered

    def dispatch(self, layer: int, x_dp: Tensor, ids_dp: Tensor) -> Handle:
        assert x_dp.shape[0] <= self._bound, f"{x_dp.shape[0]} tokens exceed the agreed bound {self._bound}"
        ids_global = self._gather_ids(layer, ids_dp)
        serving = [self._serving[layer][s][ids.long()] for s, ids in enumerate(ids_global)]
        to_peer = [(serving[self.rank] == p).any(-1).nonzero().squeeze(-1) for p in range(self.size)]
        mine = [rank_of == self.rank for rank_of in serving]
        wanted = [m.any(-1) for m in mine]
        from_peer = tuple(int(w.sum()) for w in wanted)
        received = self._all_to_all(layer, DISPATCH, [x_dp[t] for t in to_peer], from_peer)
        return Handle(
            layer=layer,
            x_ep=torch.cat(received),
            ids_ep=torch.cat([torch.where(m, ids, -1)[w] for m, ids, w in zip(mine, ids_global, wanted, strict=True)]),
            tokens_dp=x_dp.shape[0],
            tokens_of_peer=tuple(t.numel() for t in to_peer),
            tokens_from_peer=from_peer,
            pairs_of_peer=tuple((serving[self.rank].flatten() == p).nonzero().squeeze(-1) for p in range(self.size)),
            rows_of_peer=tuple(int(m.sum()) for m in mine),
        )

    def combine(self, rows_ep: Tensor, handle: Handle) -> Tensor:
        assert rows_ep.shape[0] == sum(handle.rows_of_peer), f"{rows_ep.shape[0]} rows for {handle.rows_of_peer}"
        counts = [int(pairs.numel()) for pairs in handle.pairs_of_peer]
        received = self._all_to_all(handle.layer, COMBINE, torch.split(rows_ep, list(handle.rows_of_peer)), counts)
        top_k, width = handle.ids_ep.shape[1], rows_ep.shape[1]
        rows_dp = rows_ep.new_empty(handle.tokens_dp * top_k, width)
        for pairs, rows in zip(handle.pairs_of_peer, received, strict=True):
            rows_dp[pairs] = rows
        return rows_dp.view(handle.tokens_dp, top_k, width)

    def _gather_ids(self, layer: int, ids_dp: Tensor) -> list[Tensor]:
        """Top-k ids of every rank's tokens, [T_rank, k] each. What comes before them says what and how many."""
        tokens = ids_dp.shape[0]
        head = -(-SEAL_WORDS // self._top_k)  # rows
        message = torch.full((head + self._bound, self._top_k), -1, dtype=torch.int32, device=self._device)
        message[head : head + tokens] = ids_dp
        message[:head].view(-1)[:SEAL_WORDS] = self._words(layer, IDS, tokens, ids_dp)
        gathered = self._group.all_gather(message)
        counts = gathered[:, :head].flatten(1)[:, _COUNT].tolist()
        result = []
        for rank, (rows, count) in enumerate(zip(gathered, counts, strict=True)):
            ids = rows[head : head + max(0, count)]
            if not torch.equal(rows[:head].view(-1)[:SEAL_WORDS], self._words(layer, IDS, ids.shape[0], ids)):
                raise self._refusal(rank, layer, IDS)
            result.append(ids)
        return result

    def _all_to_all(self, layer: int, phase: int, parts: Sequence[Tensor], counts: Sequence[int]) -> list[Tensor]:
        """Send parts[p] to rank p, receive counts[p] rows from it; every message is sealed."""
        width = parts[0].shape[1]
        outgoing = torch.cat([row for part in parts for row in (part, self._seal(layer, phase, part))])
        kept = parts[self.rank].shape[0] + 1
        self.traffic.sent_bytes += (outgoing.shape[0] - kept) * width * outgoing.element_size()
        incoming = outgoing.new_empty(sum(counts) + self.size, width)
        self._group.all_to_all(
            incoming, outgoing, [count + 1 for count in counts], [part.shape[0] + 1 for part in parts]
        )
        received = []
        for rank, message in enumerate(torch.split(incoming, [count + 1 for count in counts])):
            rows, seal = message[:-1], message[-1:]
            if not torch.equal(seal.view(torch.int32), self._seal(layer, phase, rows).view(torch.int32)):
                raise self._refusal(rank, layer, phase)
            received.append(rows)
        return received

    def _seal(self, layer: int, phase: int, rows: Tensor) -> Tensor:
        """[1, width] in the dtype of `rows`: the words of the seal, bit-cast, then zeros."""
        words = torch.zeros(1, rows.shape[1] * rows.element_size() // 4, dtype=torch.int32, device=rows.device)
        words[0, :SEAL_WORDS] = self._words(layer, phase, rows.shape[0], rows)
        return words.view(rows.dtype)

    def _words(self, layer: int, phase: int, count: int, rows: Tensor) -> Tensor:
        """int32 [SEAL_WORDS]. The last one is the sum of the rows' words modulo 2^32: any one bit changes it."""
        words = torch.zeros(SEAL_WORDS, dtype=torch.int32, device=rows.device)
        facts = [self._epoch, self._step & 0x7FFFFFFF, layer, phase, count]
        words[:-1] = torch.tensor(facts, dtype=torch.int32, device=rows.device)
        if rows.numel():
            words[-1] = rows.reshape(-1).view(torch.int32).sum(dtype=torch.int32)
        return words

    def _refusal(self, rank: int, layer: int, phase: int) -> ExchangeError:
        return ExchangeError(
            f"rank {rank} sent a message that is stale, foreign or damaged "
            f"(epoch {self._epoch}, step {self._step}, layer {layer}, phase {phase})"
        )
