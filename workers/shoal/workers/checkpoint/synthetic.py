"""Weights that are noise, of the exact published shapes, made faster than a disk reads them.

Every 32 bits are a hash of (seed, tensor, position): integer arithmetic, so a CPU that writes a file and a GPU that
fills its own memory make the same bytes, whatever part of a tensor they make. Scales are those of trained checkpoints,
so that activations stay in range through every layer; answers mean nothing.

    codes   uniform: all sixteen E2M1 values
    scales  a power of two and up to three doublings, 118 to 121 in the published shapes, so that a row keeps its gain
    bf16    the sum of four bytes, nearly normal, times the deviation, plus the mean

`cluster/checkpoint/weights.py` draws better noise (true normal deviates, quantised), at a hundredth of the speed.
"""

from __future__ import annotations

import hashlib
import json
import math
import threading
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from math import prod

import torch
from torch import Tensor

from shoal.workers.checkpoint.checkpoint import runs
from shoal.workers.checkpoint.layout import GROUP, TensorSpec, hf_specs, is_expert_tensor, stored_bytes
from shoal.workers.model.config import ModelConfig

VERSION = 1
"""Part of what a seed means: raised when the same seed gives other weights."""

_WORDS = {"cpu": 1 << 15, "cuda": 1 << 25}
"""Hashed at once: what fits in a core's cache and what fills a GPU. Does not show in the result."""

_PIECE = 1 << 22  # bytes written at once
_SUM_DEVIATION = math.sqrt(4 * (256**2 - 1) / 12)  # of four uniform bytes
_CODES_SQUARE = 137 / 16  # mean square of the sixteen E2M1 values
_DOUBLINGS = 3
_TWO_ROUNDS = (0x7FEB352D, 0x846CA68B - (1 << 32))  # lowbias32, a published integer hash, as signed words


@dataclass(frozen=True, slots=True)
class Spread:
    """What the values of a tensor look like."""

    mean: float
    deviation: float


def spread(name: str, columns: int) -> Spread:
    """Mean and deviation of a tensor whose rows sum over `columns` inputs. Weights keep the gain of what they sum."""
    if "norm" in name:
        return Spread(1.0, 0.1)
    if name.endswith("sinks") or "embed_tokens" in name:
        return Spread(0.0, 1.0)
    if name.endswith("router.bias"):
        return Spread(0.0, 0.2)
    if name.endswith("bias"):
        return Spread(0.0, 0.1)
    gain = 1.0
    if ".experts." in name:
        gain = 1.5
    elif "q_proj" in name or "k_proj" in name or "router" in name or "lm_head" in name:
        gain = 2.0  # peaked attention, decided routing, logits that a greedy choice is stable on
    return Spread(0.0, gain * columns**-0.5)


@dataclass(frozen=True, slots=True)
class Piece:
    """Stored bytes [first, last) of a tensor, both multiples of four."""

    spec: TensorSpec
    first: int
    last: int


def pieces(config: ModelConfig) -> Iterator[Piece]:
    """All weights of the model, some megabytes each."""
    for spec in hf_specs(config):
        size = stored_bytes(spec)
        for first in range(0, size, _PIECE):
            yield Piece(spec, first, min(first + _PIECE, size))


def draw(piece: Piece, seed: int) -> list[tuple[str, int, Tensor]]:
    """The piece's stored tensors: (HF name, byte offset in that tensor, values)."""
    dtype = _dtype(piece.spec)
    values = torch.empty((piece.last - piece.first) // dtype.itemsize, dtype=dtype)
    fill(values, piece.spec, seed, piece.first // dtype.itemsize)
    return [(piece.spec.name, piece.first, values)]


def fill(out: Tensor, spec: TensorSpec, seed: int, first: int = 0) -> None:
    """Make `out`, contiguous, the stored values of `spec` from its `first` one on, on whatever device it lies."""
    key = hashlib.sha256(f"{VERSION} {seed} {spec.name}".encode()).digest()
    keys = int.from_bytes(key[:4], "little", signed=True), int.from_bytes(key[4:8], "little", signed=True)
    flat = out.view(-1)
    if flat.dtype == torch.uint8:
        assert first % 4 == 0, f"{spec.name}: {first} is inside a word"
        flat, first = flat.view(torch.int32), first // 4
    assert first + flat.numel() < 1 << 31, f"{spec.name} has more words than a key counts"
    step = _WORDS.get(out.device.type, 1 << 15)
    for begin in range(0, flat.numel(), step):
        part = flat[begin : begin + step]
        words = torch.arange(first + begin, first + begin + part.numel(), dtype=torch.int32, device=out.device)
        part.copy_(_shaped(_hash(words, *keys), spec))


def _hash(words: Tensor, first: int, second: int) -> Tensor:
    """Two rounds over int32, in place. Products wrap around; shifts fill with zeros."""
    words ^= first
    words *= 0x9E3779B1 - (1 << 32)
    words ^= (words >> 16) & 0xFFFF
    words *= _TWO_ROUNDS[0]
    words ^= (words >> 15) & 0x1FFFF
    words ^= second
    words *= _TWO_ROUNDS[1]
    words ^= (words >> 16) & 0xFFFF
    return words


def _shaped(words: Tensor, spec: TensorSpec) -> Tensor:
    """The values that the hashed words stand for."""
    if spec.name.endswith("_blocks"):
        return words
    if spec.name.endswith("_scales"):
        chosen = words.view(torch.uint8)
        scales = chosen & 1
        for shift in range(1, _DOUBLINGS):
            scales += (chosen >> shift) & 1
        return scales.add_(_base(spec)).view(torch.int32)
    wanted = spread(spec.name, spec.shape[-1])
    total = (words & 0xFF) + ((words >> 8) & 0xFF) + ((words >> 16) & 0xFF) + ((words >> 24) & 0xFF)
    values = (total - 2 * 255).float()
    return values.mul_(wanted.deviation / _SUM_DEVIATION).add_(wanted.mean)


def _base(spec: TensorSpec) -> int:
    """The scale byte to which doublings are added: the one nearest to the wanted deviation."""
    wanted = spread(spec.name, spec.shape[-1] * GROUP).deviation
    square = _CODES_SQUARE * 2.5**_DOUBLINGS  # one doubling more or not: (1 + 4) / 2 in the square
    return 127 + round(math.log2(wanted / math.sqrt(square)))


class SyntheticWeights:
    """A `WeightSource` without a file: what is asked for is made on `device`. Equal to what `fill` writes to a disk."""

    def __init__(self, config: ModelConfig, seed: int = 0, device: torch.device | str = "cpu") -> None:
        self.config = config
        self.seed = seed
        self.device = torch.device(device)
        self._specs = {spec.name: spec for spec in hf_specs(config)}
        self._lock = threading.Lock()
        self._bytes = 0

    @property
    def fingerprint(self) -> str:
        """Tells shapes and seeds apart, as a checkpoint's does."""
        shape = json.dumps(asdict(self.config), sort_keys=True)
        return hashlib.sha256(f"synthetic {VERSION} {self.seed} {shape}".encode()).hexdigest()

    @property
    def bytes_read(self) -> int:
        """Bytes made so far."""
        return self._bytes

    def tensor(self, name: str) -> Tensor:
        """The whole tensor `name`."""
        spec = self._specs[name]
        result = torch.empty(spec.shape, dtype=_dtype(spec), device=self.device)
        self._make(result, spec, 0)
        return result

    def experts(self, name: str, ids: Sequence[int]) -> Tensor:
        """The slices `ids` of an expert tensor: [len(ids), ...], in the order of `ids`."""
        assert is_expert_tensor(name), name
        spec = self._specs[name]
        result = torch.empty((len(ids), *spec.shape[1:]), dtype=_dtype(spec), device=self.device)
        for first, last in runs(ids):
            self._make(result[first:last], spec, ids[first] * prod(spec.shape[1:]))
        return result

    def _make(self, out: Tensor, spec: TensorSpec, first: int) -> None:
        fill(out, spec, self.seed, first)
        with self._lock:
            self._bytes += out.nbytes


def _dtype(spec: TensorSpec) -> torch.dtype:
    return torch.uint8 if spec.dtypes[0] == "U8" else torch.bfloat16
