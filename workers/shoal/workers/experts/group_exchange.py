"""The exchange over torch.distributed: gloo between CPUs, NCCL between GPUs.

Each message ends in one extra row, the *seal*: (epoch, step, layer, phase, rows, checksum). A stale, foreign or
damaged message is refused before its rows are used.

The sizes follow from one small all-gather of top-k ids per layer: every rank then knows the whole schedule. It is
sealed too, in front. A device is waited for three times a layer: for the ids, and for the seals of each all-to-all.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from itertools import accumulate

import numpy as np
import torch
from torch import Tensor

from shoal.workers.errors import ExchangeError
from shoal.workers.experts.exchange import Agreement, Handle, Traffic, Wish
from shoal.workers.experts.placement import Placement
from shoal.workers.experts.process_group import ProcessGroup
from shoal.workers.experts.routes import Routes, routes

IDS, DISPATCH, COMBINE = 0, 1, 2
SEAL_WORDS = 6
_COUNT, _CHECKSUM = 4, 5  # words of a seal: how many rows, and their sum


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
            np.array([[placement.serving_rank(layer, e, s) for e in experts] for s in ranks], np.int32)
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
        way = self._routes(layer, ids_dp)
        places = self._upload(np.concatenate([way.send, way.came, way.back]))
        send, came, back = torch.tensor_split(places, (len(way.send), len(way.send) + len(way.came)))
        outgoing = x_dp.index_select(0, send) if x_dp.shape[0] else x_dp.new_zeros(self.size, x_dp.shape[1])
        incoming = self._all_to_all(layer, DISPATCH, outgoing, way.tokens_to, way.tokens_from)
        return Handle(
            layer=layer,
            x_ep=incoming.index_select(0, came),
            ids_ep=self._upload(way.ids),
            tokens_dp=x_dp.shape[0],
            tokens_of_peer=way.tokens_to,
            tokens_from_peer=way.tokens_from,
            rows_of_peer=way.rows_to,
            rows_from_peer=way.rows_from,
            back=back,
        )

    def combine(self, rows_ep: Tensor, handle: Handle) -> Tensor:
        assert rows_ep.shape[0] == sum(handle.rows_of_peer), f"{rows_ep.shape[0]} rows for {handle.rows_of_peer}"
        seal = rows_ep.new_zeros(1, rows_ep.shape[1])
        parts = torch.split(rows_ep, list(handle.rows_of_peer))
        outgoing = torch.cat([piece for part in parts for piece in (part, seal)])
        incoming = self._all_to_all(handle.layer, COMBINE, outgoing, handle.rows_of_peer, handle.rows_from_peer)
        assert handle.back is not None, "it is not a handle of this exchange"
        return incoming.index_select(0, handle.back).view(handle.tokens_dp, handle.ids_ep.shape[1], rows_ep.shape[1])

    def _upload(self, values: np.ndarray[tuple[int, ...], np.dtype[np.integer]]) -> Tensor:
        return torch.from_numpy(values).to(self._device, non_blocking=True)

    def _routes(self, layer: int, ids_dp: Tensor) -> Routes:
        """From top-k ids of every rank's tokens. What comes before them says what and how many."""
        tokens = ids_dp.shape[0]
        head = -(-SEAL_WORDS // self._top_k)  # rows
        message = torch.full((head + self._bound, self._top_k), -1, dtype=torch.int32, device=self._device)
        message[head : head + tokens] = ids_dp
        seal = message.view(-1)[:SEAL_WORDS]
        seal[:-1] = self._upload(np.array([*self._facts(layer, IDS), tokens]))
        seal[-1] = message[head:].sum(dtype=torch.int32)
        gathered = self._group.all_gather(message).cpu().numpy()
        ids = gathered[:, head:]
        seals = gathered[:, :head].reshape(len(ids), -1)[:, :SEAL_WORDS]
        expected = np.empty_like(seals)
        expected[:] = [*self._facts(layer, IDS), 0, 0]
        expected[:, _COUNT] = seals[:, _COUNT].clip(0, self._bound)
        expected[:, _CHECKSUM] = ids.sum(axis=(1, 2), dtype=np.int32)
        self._compare(layer, IDS, (seals != expected).any(axis=1).tolist())
        counts = seals[:, _COUNT].tolist()
        listed = np.concatenate([rows[:count] for rows, count in zip(ids, counts, strict=True)])
        return routes(self.rank, self._serving[layer], listed, counts)

    def _all_to_all(
        self, layer: int, phase: int, outgoing: Tensor, counts_out: Sequence[int], counts_in: Sequence[int]
    ) -> Tensor:
        """Send counts_out[p] rows to rank p, counts_in[p] come from it. Behind each message is a row for its seal."""
        width = outgoing.shape[1]
        seals, ends = self._seals(layer, phase, outgoing, counts_out)
        outgoing.index_fill_(0, ends, 0)
        outgoing.view(torch.int32)[ends, :SEAL_WORDS] = seals
        sizes_in, sizes_out = [count + 1 for count in counts_in], [count + 1 for count in counts_out]
        self.traffic.sent_bytes += (outgoing.shape[0] - sizes_out[self.rank]) * width * outgoing.element_size()
        incoming = outgoing.new_empty(sum(sizes_in), width)
        self._group.all_to_all(incoming, outgoing, sizes_in, sizes_out)
        seals, ends = self._seals(layer, phase, incoming, counts_in)
        wrong = (incoming.view(torch.int32)[ends, :SEAL_WORDS] != seals).any(dim=1)
        self._compare(layer, phase, wrong.tolist())
        return incoming

    def _facts(self, layer: int, phase: int) -> tuple[int, int, int, int]:
        return self._epoch, self._step & 0x7FFFFFFF, layer, phase

    def _seals(self, layer: int, phase: int, rows: Tensor, counts: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Of messages that follow each other in `rows`, each with a row behind it: seals, int32 [N, SEAL_WORDS], and
        where they belong, int64 [N]. The last word is the sum of a message's words modulo 2^32: any one bit changes
        it."""
        facts, places = self._facts(layer, phase), accumulate(count + 1 for count in counts)
        known = self._upload(np.array([[*facts, n, place - 1] for n, place in zip(counts, places, strict=True)]))
        sums = rows.new_zeros(rows.shape[0] + 1, dtype=torch.int32)
        torch.cumsum(rows.view(torch.int32).sum(dim=1, dtype=torch.int32), 0, dtype=torch.int32, out=sums[1:])
        ends = known[:, _CHECKSUM]
        seals = known.to(torch.int32)
        seals[:, _CHECKSUM] = sums[ends] - sums[ends - known[:, _COUNT]]
        return seals, ends

    def _compare(self, layer: int, phase: int, wrong: Sequence[bool]) -> None:
        if any(wrong):
            raise ExchangeError(
                f"rank {wrong.index(True)} sent a message that is stale, foreign or damaged "
                f"(epoch {self._epoch}, step {self._step}, layer {layer}, phase {phase})"
            )
