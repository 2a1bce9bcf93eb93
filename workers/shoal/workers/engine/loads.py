"""What the experts of every layer had to do, told without waiting for a device: it comes with a step's tokens."""

from __future__ import annotations

import torch
from torch import Tensor

from shoal.workers.model.download import Download, Fetch
from shoal.workers.model.model import Model
from shoal.workers.model.moe import ExpertLayer

Loads = tuple[dict[int, int], ...]
"""By layer: tokens per expert held here, since the epoch began."""


class LoadBook:
    """Belongs to one runner; `ask` may be called from any thread."""

    def __init__(self, model: Model, fetch: Fetch) -> None:
        self._model = model
        self._fetch = fetch
        self._asked = False
        self._begun: tuple[tuple[ExpertLayer, ...], Download] | None = None
        self._last: tuple[tuple[ExpertLayer, ...], Loads] = ((), ())

    def ask(self, *, busy: bool) -> Loads:
        """As they are; from a `busy` device, which is not waited for, as they came after somebody asked, or not yet."""
        layers = self._model.experts
        if not busy:
            return _told(layers, torch.cat([layer.load for layer in layers]).cpu()) if layers else ()
        self._asked = True
        known, loads = self._last
        return loads if known is layers else ()

    def begin(self) -> None:
        """Somebody asked: they are on their way behind the step that was launched last."""
        if self._asked and self._begun is None and (layers := self._model.experts):
            self._asked = False
            self._begun = layers, self._fetch([torch.cat([layer.load for layer in layers])])

    def land(self) -> None:
        """That step is over, so they are here."""
        if self._begun is not None:
            (layers, download), self._begun = self._begun, None
            self._last = layers, _told(layers, *download.wait())


def _told(layers: tuple[ExpertLayer, ...], flat: Tensor) -> Loads:
    parts = torch.split(flat, [layer.load.numel() for layer in layers])
    return tuple(layer.by_expert(part.tolist()) for layer, part in zip(layers, parts, strict=True))
