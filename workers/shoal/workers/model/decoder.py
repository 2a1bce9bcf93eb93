"""Decode steps from recordings: every sequence one token, the batch filled up to a size that was recorded.

    alone        one recording: embedding, all layers
    in a group   recordings of the segments between exchanges, which lie between them:
                 embedding + attention + router | exchange | experts | exchange | sum + attention + router | ... | sum

Rows that only fill up write to a block of nobody and choose no expert, so they read no weights and count in no load.
Experts lie in slots behind a table on the device: a new epoch changes the table in place, and what was recorded serves
it. Only when the slots themselves move is everything recorded anew.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from shoal.kernels.attention import AttentionBatch
from shoal.workers.experts.exchange import Handle
from shoal.workers.experts.memory import free_bytes
from shoal.workers.model.graphs import Recorder, Work, recorder_for, sizes_up_to
from shoal.workers.model.model import KvPlace, Model, ModelInput, Routed
from shoal.workers.model.moe import ExpertLayer
from shoal.workers.model.step import Padding, StepInts, fill_in, no_step
from shoal.workers.model.timing import Stopwatch
from shoal.workers.model.upload import Upload, offsets, views

_log = logging.getLogger(__name__)

EXPERTS = "experts"
"""Kind of a recording: a layer's experts over rows that came from everywhere; the others are kinds of steps."""
WHOLE = "whole"
SEGMENTS = "segments"

STALE = 4096
"""Steps after which a recording that was not used gives way to another, where memory is short."""

Key = tuple[str, int]
"""Kind and size."""


@dataclass(frozen=True, slots=True)
class Recording:
    """What is replayed, one part per segment, and the memory that it took."""

    parts: tuple[Work, ...]
    nbytes: int


class Decoder:
    """Belongs to one model and to the thread that steps it. Falls back to the plain path wherever it cannot record."""

    def __init__(
        self, model: Model, recorder: Recorder, upload: Upload, max_batch: int, max_context: int, *, memory: int,
        free_bytes: Callable[[], int],
    ) -> None:  # fmt: skip
        """Steps of up to `max_batch` sequences. Recordings may take `memory` bytes, as `free_bytes` shows."""
        assert model.kv.scratch, "no block for rows that only fill up: allocate(..., scratch=True)"
        config, plan, device = model.config, model.kv.plan, model.target.device
        self._model = model
        self._recorder = recorder
        self._upload = upload
        self._memory = memory
        self._free_bytes = free_bytes
        self.sizes = sizes_up_to(max_batch)
        self.replays = 0
        """Steps that were replayed."""
        self._padding = Padding(plan.block_size, plan.num_full, plan.num_sliding)
        self._experts: tuple[ExpertLayer, ...] = ()
        self._addresses: tuple[int, ...] = ()
        self._recordings: OrderedDict[Key, Recording] = OrderedDict()  # the one used last is last
        self._used: dict[Key, int] = {}  # the replay before which it was used last
        self._refused: set[Key] = set()
        self._watch = Stopwatch()  # of what is recorded: its time means nothing

        hidden, k, dtype = config.hidden_size, config.experts_per_token, model.target.dtype

        def room(*shape: int, dtype: torch.dtype = dtype) -> Tensor:
            return torch.zeros(shape, dtype=dtype, device=device)

        capacity = -(-max_context // plan.block_size)
        self._tables = [room(max_batch, capacity, dtype=torch.int32) for _ in range(2)]
        self._cu_q = torch.arange(max_batch + 1, dtype=torch.int32, device=device)
        widest = self._padding.fill(no_step(), max_batch)[:6]
        most = offsets(widest)[1] + 2 * (max_batch * capacity * 4 + 16) + 2 * max_batch * 8 + 16
        self._inbox = room(most, dtype=torch.uint8)
        self._x = room(max_batch, hidden)
        self._routed = Routed(
            room(max_batch, hidden), room(max_batch, hidden), room(max_batch, k, dtype=torch.int32),
            room(max_batch, k, dtype=torch.float32),
        )  # fmt: skip
        self._rows = room(max_batch, k, hidden)
        self._x_ep = room(0, hidden)
        self._ids_ep = room(0, k, dtype=torch.int32)
        self._rows_ep = room(0, hidden)

    @property
    def recorded(self) -> tuple[Key, ...]:
        """What is ready to be replayed."""
        return tuple(self._recordings)

    @property
    def nbytes(self) -> int:
        """Memory that recordings took."""
        return sum(recording.nbytes for recording in self._recordings.values())

    def size_for(self, step: StepInts) -> int:
        """The size that `step` is filled up to; 0: it is not replayed."""
        rows = len(step.ids)
        return next((size for size in self.sizes if rows <= size), 0) if step.decoding else 0

    @torch.inference_mode()
    def record_all(self) -> None:
        """Record every size ahead, the largest first, as far as memory goes: the smaller ones fit in its room."""
        self._settle()
        kind = WHOLE if self._alone else SEGMENTS
        for size in reversed(self.sizes):
            self._ready((kind, size))
        for size in reversed(sizes_up_to(self._x_ep.shape[0])) if kind == SEGMENTS else ():
            self._ready((EXPERTS, size))

    @torch.inference_mode()
    def hidden(self, step: StepInts, chosen: Tensor | None = None) -> Tensor | None:
        """The residual stream behind the last layer, [T, H]: valid until the next call. None: take the plain path.
        `chosen` i64: what the step before chose.

        A collective in a group, like the plain path. Raises ExchangeError.
        """
        size = self.size_for(step)
        if not size:
            return None
        self._settle()
        if self._alone:
            recording = self._ready((WHOLE, size)) if len(step.ids) else None
            if recording is None:
                return None
            self._fill(step, size, chosen)
            recording.parts[0]()
        else:
            recording = self._ready((SEGMENTS, size))
            if recording is None:
                return None
            self._through_group(recording, step, size, chosen)
        self.replays += 1
        return self._x[: len(step.ids)]

    # -- what is recorded ---------------------------------------------------------------------------------------

    def _whole(self, size: int) -> Work:
        """The step of a rank that holds every expert."""
        model, experts, watch = self._model, self._experts, self._watch
        step, live = self._input(size)

        def work() -> None:
            stream = model.embed(step.ids)
            for i, layer in enumerate(experts):
                routed = model.to_experts(i, stream, step, model.kv, watch, live)
                rows = layer.compute(routed.t_dp, routed.ids_dp)
                stream = model.from_experts(i, routed, _all_rows(rows, *routed.ids_dp.shape), watch)
            self._x[:size].copy_(stream.x)

        return work

    def _segment(self, size: int, number: int) -> Work:
        """What one rank of a group computes before exchange `number`, or behind the last one."""
        model, watch, last = self._model, self._watch, len(self._experts)
        step, _ = self._input(size)
        r = self._routed
        kept = Routed(r.x_dp[:size], r.t_dp[:size], r.ids_dp[:size], r.weights_dp[:size])
        rows = self._rows[:size]

        def work() -> None:
            stream = model.from_experts(number - 1, kept, rows, watch) if number else model.embed(step.ids)
            if number == last:
                self._x[:size].copy_(stream.x)
                return
            new = model.to_experts(number, stream, step, model.kv, watch)
            for into, value in (
                (kept.x_dp, new.x_dp), (kept.t_dp, new.t_dp), (kept.ids_dp, new.ids_dp),
                (kept.weights_dp, new.weights_dp),
            ):  # fmt: skip
                into.copy_(value)

        return work

    def _served(self, size: int, number: int) -> Work:
        """The experts of one layer over `size` rows that came from everywhere."""
        layer, k = self._experts[number], self._ids_ep.shape[1]
        x_ep, ids_ep, rows_ep = self._x_ep[:size], self._ids_ep[:size], self._rows_ep[: size * k]

        def work() -> None:
            rows = layer.compute(x_ep, ids_ep)
            rows_ep[: rows.shape[0]].copy_(rows)

        return work

    def _input(self, size: int) -> tuple[ModelInput, Tensor]:
        """The step's tensors, as they lie in the inbox, and how many of its rows are true ones, [1]."""
        fixed = self._padding.fill(no_step(), size)[:6]
        ids, positions, full_slots, sliding_slots, lens, live = views(self._inbox, fixed)
        full, sliding = (AttentionBatch(self._cu_q[: size + 1], lens, table[:size]) for table in self._tables)
        step = ModelInput(
            ids, positions, KvPlace(full_slots, full), KvPlace(sliding_slots, sliding), logit_rows=ids[:0]
        )
        return step, live

    # -- how it is replayed -------------------------------------------------------------------------------------

    def _fill(self, step: StepInts, size: int, chosen: Tensor | None = None) -> None:
        """Bring the step's integers to where the recordings read them."""
        ints = [*self._padding.fill(step, size), *step.late_ints]
        self._upload.into(self._inbox, ints)
        ids, *_, full, sliding = (brought := views(self._inbox, ints))[:8]
        for table, new in zip(self._tables, (full, sliding), strict=True):
            table[:size, : new.shape[1]].copy_(new)
        fill_in(ids, brought[8:], chosen)

    def _through_group(self, recording: Recording, step: StepInts, size: int, chosen: Tensor | None) -> None:
        rows, r = len(step.ids), self._routed
        if rows:
            self._fill(step, size, chosen)
            recording.parts[0]()
        for number, layer in enumerate(self._experts):
            with self._model.stopwatch.phase("exchange"):
                handle = layer.exchange.dispatch(number, r.t_dp[:rows], r.ids_dp[:rows])
            with self._model.stopwatch.phase("experts"):
                rows_ep = ExpertLayer.served(self._serve(number, layer, handle), handle)
            with self._model.stopwatch.phase("exchange"):
                rows_dp = layer.exchange.combine(rows_ep, handle)
            if rows:
                self._rows[:rows].copy_(rows_dp)
                recording.parts[number + 1]()

    def _serve(self, number: int, layer: ExpertLayer, handle: Handle) -> Tensor:
        count = handle.x_ep.shape[0]
        size = next((size for size in sizes_up_to(self._x_ep.shape[0]) if count <= size), 0) if count else 0
        recording = self._ready((EXPERTS, size)) if size else None
        if recording is None:
            return layer.compute(handle.x_ep, handle.ids_ep)
        self._x_ep[:count].copy_(handle.x_ep)
        self._ids_ep[:count].copy_(handle.ids_ep)
        self._ids_ep[count:size].fill_(-1)
        recording.parts[number]()
        return self._rows_ep

    # -- recordings and their memory ----------------------------------------------------------------------------

    @property
    def _alone(self) -> bool:
        return all(layer.alone for layer in self._experts)

    def _settle(self) -> None:
        """Drop what was recorded over slots that are gone."""
        experts = self._model.experts
        if experts is self._experts:
            return
        addresses = tuple(address for layer in experts for address in layer.addresses)
        if addresses != self._addresses:
            self._recordings.clear()
            self._refused.clear()
        self._experts, self._addresses = experts, addresses
        rows = self.sizes[-1] * experts[0].exchange.size
        if not self._alone and self._x_ep.shape[0] < rows:
            for key in [key for key in self._recordings if key[0] == EXPERTS]:
                del self._recordings[key]
            hidden, k = self._x.shape[1], self._ids_ep.shape[1]
            self._x_ep, self._ids_ep = self._x.new_zeros(rows, hidden), self._ids_ep.new_zeros(rows, k)
            self._rows_ep = self._x.new_zeros(rows * k, hidden)

    def _ready(self, key: Key) -> Recording | None:
        """The recording of `key`, made now if need be; None when there is no memory for it or it cannot be made."""
        found = self._recordings.get(key)
        if found is not None:
            self._recordings.move_to_end(key)
            self._used[key] = self.replays
            return found
        if key in self._refused:
            return None
        self._evict()
        if self.nbytes >= self._memory:
            return None
        before = self._free_bytes()
        try:
            parts = self._record(key)
        except RuntimeError as error:
            self._refused.add(key)
            _log.warning("steps of kind %s and size %d are not replayed, they could not be recorded: %s", *key, error)
            return None
        recording = Recording(parts, max(0, before - self._free_bytes()))
        self._recordings[key] = recording
        self._used[key] = self.replays
        return recording

    def _evict(self) -> None:
        """Make room by dropping what has not been used for long. What is in use stays, rather than that two sizes take
        turns in being recorded: others then take the plain path."""
        for key in list(self._recordings):
            if self.nbytes < self._memory or self.replays - self._used[key] < STALE:
                return
            del self._recordings[key]

    def _record(self, key: Key) -> tuple[Work, ...]:
        kind, size = key
        if kind == EXPERTS:
            self._ids_ep[:size].fill_(-1)
            works = [self._served(size, number) for number in range(len(self._experts))]
        else:
            self._fill(no_step(), size)
            if kind == WHOLE:
                works = [self._whole(size)]
            else:
                works = [self._segment(size, number) for number in range(len(self._experts) + 1)]
        return tuple(self._recorder.record(work) for work in works)


def decoder_for(model: Model, max_batch: int, max_context: int, memory: int) -> Decoder | None:
    """The decoder of a model whose cache has a block for rows that only fill up; None of any other."""
    if not model.kv.scratch:
        return None
    device = model.target.device
    return Decoder(
        model, recorder_for(device), Upload(device, packed=True), max_batch, max_context, memory=memory,
        free_bytes=lambda: free_bytes(device),
    )  # fmt: skip


def _all_rows(rows: Tensor, tokens: int, k: int) -> Tensor:
    """[P, H] -> [tokens, k, H]: where the backend returns no room for pairs served nowhere, it is added behind."""
    missing = tokens * k - rows.shape[0]
    if missing:
        rows = torch.cat([rows, rows.new_zeros(missing, rows.shape[1])])
    return rows.view(tokens, k, rows.shape[1])
