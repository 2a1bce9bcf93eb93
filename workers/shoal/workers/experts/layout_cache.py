"""Experts on disk in the order in which this device reads them, so that the next start need not order them again.

A file per expert: a page of header, then the bytes of its slot. It is bound to the checkpoint, to the order of bytes
and to the device by the name of its folder and by its digest; one that is damaged, of another length or of something
else is not used, and is written again. Files appear whole or not at all, whoever else writes them.

    FOLDER / place / key / layer / expert     `place`: which model for which kind of device; `key`: these very bytes

What is in a place under another key is of the same model before it changed, and goes when the new key's first expert is
written; what a writer that was killed has left goes when an hour later somebody writes beside it.
"""

from __future__ import annotations

import contextlib
import hashlib
import mmap
import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import structlog

from shoal.kernels import moe_matmul
from shoal.kernels.target import Target
from shoal.workers.checkpoint import Checkpoint
from shoal.workers.experts.supply import bytes_of, put_bytes
from shoal.workers.model.weights import FREE, LayerExperts

log = structlog.get_logger()

Load = Callable[[int, Sequence[int], int], LayerExperts]
"""As `ExpertSupply` takes it: layer, ids, free slots behind them."""

_PAGE = 4096
_MAGIC = b"shoal experts 1\n"
_BEGUN = "."
"""What the name of a file begins with that is not whole yet."""
_LONGEST_WRITE = 3600.0
"""Seconds after which nobody writes at one any more."""


class LayoutCache:
    """One folder of experts in one order. Any number of workers may use it at once."""

    def __init__(self, place: Path, key: str, sample: LayerExperts, threads: int = 1) -> None:
        """`key` says what is kept in the folder `place`, `sample` is one slot of it; so many `threads` read and
        write."""
        self._folder = place / key
        self._key = key
        self._sample = sample
        self._size = sum(part[0].nbytes for part in sample.parts)
        self._threads = threads
        self._writes = True
        self._told = False

    def through(self, load: Load) -> Load:
        """`load`, but what is here already comes from here, and what is not is here afterwards."""

        def cached(layer: int, ids: Sequence[int], spare_slots: int) -> LayerExperts:
            kept = [expert for expert in ids if self._path(layer, expert).exists()]
            if not kept:
                return self._keep(layer, ids, load(layer, ids, spare_slots))
            result = self._sample.empty(len(ids) + spare_slots)
            found = self._each(kept, lambda expert: self._read(layer, expert, result, ids.index(expert)))
            there = {expert for expert, usable in zip(kept, found, strict=True) if usable}
            missing = [expert for expert in ids if expert not in there]
            if missing:
                loaded = self._keep(layer, missing, load(layer, missing, 0))
                for source, expert in enumerate(missing):
                    for into, part in zip(result.parts, loaded.parts, strict=True):
                        into[ids.index(expert)].copy_(part[source])
            return LayerExperts((*ids, *[FREE] * spare_slots), result.gate_up, result.down)

        return cached

    def _keep(self, layer: int, ids: Sequence[int], experts: LayerExperts) -> LayerExperts:
        if self._writes and not self._folder.exists():
            self._forget_others()
        written = self._each(ids, lambda expert: self._write(layer, expert, experts, ids.index(expert)))
        if any(written):
            _sweep(self._path(layer, ids[written.index(True)]))
        return experts

    def _forget_others(self) -> None:
        """Whoever still reads there finds nothing, or reads on in a file without a name."""
        for other in _children(self._folder.parent):
            if other != self._folder and other.is_dir():
                log.info("ordered experts of an older checkpoint are deleted", folder=str(other))
                shutil.rmtree(other, ignore_errors=True)

    def _each(self, ids: Sequence[int], work: Callable[[int], bool]) -> list[bool]:
        if self._threads == 1:
            return list(map(work, ids))
        with ThreadPoolExecutor(self._threads, thread_name_prefix="layout") as pool:
            return list(pool.map(work, ids))

    def _path(self, layer: int, expert: int) -> Path:
        return self._folder / str(layer) / str(expert)

    def _read(self, layer: int, expert: int, into: LayerExperts, slot: int) -> bool:
        """Whether the expert was there, and is in its slot now."""
        try:
            with self._path(layer, expert).open("rb") as file:
                if os.fstat(file.fileno()).st_size != _PAGE + self._size:
                    return self._unusable(layer, expert, "it has another length")
                mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)  # tensors want memory they may write
        except FileNotFoundError:
            return False
        except OSError as error:
            return self._unusable(layer, expert, str(error))
        with memoryview(mapped) as whole, whole[_PAGE:] as data:
            if whole[: len(_MAGIC) + 32] != _MAGIC + self._digest(layer, expert, data):
                return self._unusable(layer, expert, "it is damaged, or something else")
        put_bytes(into, slot, mapped, _PAGE)
        return True

    def _write(self, layer: int, expert: int, experts: LayerExperts, slot: int) -> bool:
        if not self._writes:
            return False
        data, path = bytes_of(experts, slot), self._path(layer, expert)
        header = (_MAGIC + self._digest(layer, expert, memoryview(data))).ljust(_PAGE, b"\0")
        begun = ""
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=path.parent, prefix=_BEGUN, delete=False) as file:
                begun = file.name
                file.write(header)
                file.write(data)
            os.chmod(begun, 0o644)
            os.replace(begun, path)
        except OSError as error:
            self._give_up(str(error))
            if begun:
                Path(begun).unlink(missing_ok=True)
            return False
        return True

    def _digest(self, layer: int, expert: int, data: memoryview) -> bytes:
        digest = hashlib.sha256(f"{self._key}/{layer}/{expert}/".encode())
        digest.update(data)
        return digest.digest()

    def _unusable(self, layer: int, expert: int, problem: str) -> bool:
        """Said once: where one is damaged, many may be."""
        if not self._told:
            self._told = True
            log.warning(
                "an ordered expert is not used and made again", folder=str(self._folder), layer=layer, expert=expert,
                problem=problem,
            )  # fmt: skip
        return False

    def _give_up(self, problem: str) -> None:
        """A disk that is full or may not be written to stops nothing but this."""
        if self._writes:
            self._writes = False
            log.warning("ordered experts are not kept any more", folder=str(self._folder), problem=problem)


def _sweep(written: Path) -> None:
    """Delete what killed writers left beside a file `written` just now, whose time is the file system's own."""
    with contextlib.suppress(OSError):
        now = written.stat().st_mtime
        for file in _children(written.parent):
            if file.name.startswith(_BEGUN) and file.stat().st_mtime < now - _LONGEST_WRITE:
                file.unlink()


def _children(folder: Path) -> list[Path]:
    """None of a folder that is not there."""
    try:
        return list(folder.iterdir())
    except OSError:
        return []


def place_of(checkpoint: Checkpoint, target: Target) -> str:
    """The model by its path and shape, and the kind of device: what stays when weights or the order of bytes change."""
    parts = str(checkpoint.path.resolve()), checkpoint.config, target.device.type, target.backend, target.int8
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:32]


def key_of(checkpoint: Checkpoint, target: Target, sample: LayerExperts) -> str:
    """Everything that decides about a byte: checkpoint, times of its files, order of bytes, kind of device.

    The files' times are in it because a fingerprint does not look at every byte: a checkpoint mended in place has other
    ones.
    """
    files = ((file.path.name, file.size, file.written_ns) for file in checkpoint.files)
    parts = (
        checkpoint.fingerprint, sorted(files), moe_matmul.LAYOUT, target.device.type, target.backend, target.int8,
        hashlib.sha256(bytes_of(sample, 0)).hexdigest(),
    )  # fmt: skip
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:32]
