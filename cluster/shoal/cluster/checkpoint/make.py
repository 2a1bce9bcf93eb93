"""Writing a checkpoint directory of random weights, in either published layout.

All or nothing: everything goes into a directory of another name beside the wanted one, which is renamed at the end.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from math import prod
from pathlib import Path

from torch import Tensor

from shoal.cluster.checkpoint import side_files, weights
from shoal.cluster.checkpoint.presets import Preset, find_preset
from shoal.cluster.checkpoint.shards import ShardWriter, nbytes, plan_shards
from shoal.cluster.checkpoint.tokenizer import tokenizer_json
from shoal.workers.checkpoint import synthetic as synthetic_weights
from shoal.workers.checkpoint.checkpoint import byte_view
from shoal.workers.checkpoint.directory import INDEX
from shoal.workers.checkpoint.error import CheckpointError
from shoal.workers.checkpoint.layout import Layout, TensorSpec, hf_specs, original_source, original_specs
from shoal.workers.model.config import ModelConfig

Progress = Callable[[int, int], None]  # bytes written so far, bytes in all
Draw = Callable[[], list[tuple[str, int, Tensor]]]  # a piece's (HF name, byte offset in that tensor, values)
_SIDE_FILES = 64 << 20  # bytes; more than the tokenizer and the headers of the largest preset need


def make_checkpoint(
    path: Path | str,
    preset: str | Preset,
    seed: int = 0,
    layout: Layout = "hf",
    *,
    progress: Progress | None = None,
    largest_shard: int | None = None,
    threads: int | None = None,
    synthetic: bool = False,
) -> Path:
    """Writes a checkpoint of seeded random weights to the directory `path` and returns it.

    The layout "hf" puts everything there; "original" puts config.json, dtypes.json and the weights into `original/`,
    the tokenizer at the root, as in the published repositories. Weights of one seed are equal in both layouts.
    A few pieces of some megabytes are in memory at a time, whatever the preset.

    Args:
        preset: the name of a preset, or a shape of your own.
        progress: called from this thread after each piece.
        largest_shard: bytes of data in one file; by default about what was published.
        threads: pieces drawn at once; by default one per core, at most 8.
        synthetic: cheaper noise, made as fast as a disk takes it (`workers/checkpoint/synthetic.py`), for measuring at
            full size; a README.md in the directory says so.

    Raises:
        ValueError: there is no such preset.
        CheckpointError: `path` exists and is not an empty directory, the disk is too small, or writing failed.
    """
    shape = find_preset(preset) if isinstance(preset, str) else preset
    target = Path(path).absolute()
    shards = plan_shards(specs_of(shape.config(), layout), layout, largest_shard)
    total = sum(nbytes(spec) for shard in shards for spec in shard.specs)
    _check_target(target, total)
    staging = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=f".{target.name}.making-", dir=target.parent))
        folder = staging if layout == "hf" else staging / "original"
        folder.mkdir(exist_ok=True)
        _write_side_files(staging, folder, shape, layout)
        if synthetic:
            (staging / "README.md").write_text(side_files.synthetic_readme(shape, seed), encoding="utf-8")
        if len(shards) > 1:
            placed = {spec.name: shard.name for shard in shards for spec in shard.specs}
            _write_json(folder / INDEX, side_files.index(placed, total))
        with ShardWriter(folder, shards) as writer:
            drawn = _synthetic(shape.config(), seed) if synthetic else _random(shape.config(), seed)
            _write_weights(writer, drawn, shape.config(), layout, total, progress, threads)
        staging.chmod(0o755)  # mkdtemp makes it private
        os.replace(staging, target)
        staging = None
    except OSError as error:
        raise CheckpointError(error.filename or target, f"cannot be written: {error.strerror or error}") from error
    finally:
        if staging is not None:
            shutil.rmtree(staging, ignore_errors=True)
    return target


def _check_target(target: Path, total: int) -> None:
    try:
        if target.exists() and (not target.is_dir() or any(target.iterdir())):
            raise CheckpointError(target, "exists already", expected="a new name or an empty directory")
        parent = next(folder for folder in target.parents if folder.exists())
        free = shutil.disk_usage(parent).free
    except OSError as error:
        raise CheckpointError(target, f"cannot be written: {error.strerror}") from error
    if free < total + _SIDE_FILES:
        raise CheckpointError(parent, "disk too small", expected=f"{total + _SIDE_FILES} bytes free", found=free)


def _write_side_files(root: Path, folder: Path, preset: Preset, layout: Layout) -> None:
    if layout == "hf":
        _write_json(folder / "config.json", side_files.hf_config(preset))
    else:
        _write_json(folder / "config.json", side_files.original_config(preset))
        _write_json(folder / "dtypes.json", side_files.original_dtypes(original_specs(preset.config())))
    _write_json(root / "generation_config.json", side_files.generation_config(preset))
    _write_json(root / "tokenizer_config.json", side_files.tokenizer_config(preset))
    (root / "tokenizer.json").write_text(tokenizer_json(preset), encoding="utf-8")


def _write_json(path: Path, content: Mapping[str, object]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _random(config: ModelConfig, seed: int) -> Iterator[Draw]:
    return (partial(weights.draw, piece, seed) for piece in weights.pieces(config))


def _synthetic(config: ModelConfig, seed: int) -> Iterator[Draw]:
    return (partial(synthetic_weights.draw, piece, seed) for piece in synthetic_weights.pieces(config))


def _write_weights(
    writer: ShardWriter,
    drawn: Iterator[Draw],
    config: ModelConfig,
    layout: Layout,
    total: int,
    progress: Progress | None,
    threads: int | None,
) -> None:
    places = {spec.name: _place(spec.name, spec.shape, config, layout) for spec in hf_specs(config)}

    def write(draw: Draw) -> int:
        size = 0
        for name, offset, values in draw():
            stored, start = places[name]
            writer.write(stored, start + offset, byte_view(values))
            size += values.nbytes
        return size

    done = 0
    count = threads or min(8, os.cpu_count() or 1)
    pool = ThreadPoolExecutor(count, "checkpoint")
    try:
        for size in _in_flight(pool, write, drawn, 2 * count):
            done += size
            if progress is not None:
                progress(done, total)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
    assert done == total, (done, total)


def _in_flight(
    pool: ThreadPoolExecutor, work: Callable[[Draw], int], items: Iterable[Draw], most: int
) -> Iterator[int]:
    """`map` in order with at most `most` items begun and not yet returned: there may be a million of them."""
    running: deque[Future[int]] = deque()
    for item in items:
        running.append(pool.submit(work, item))
        if len(running) >= most:
            yield running.popleft().result()
    while running:
        yield running.popleft().result()


def _place(name: str, shape: tuple[int, ...], config: ModelConfig, layout: Layout) -> tuple[str, int]:
    """The tensor that holds the HF-named one in this layout, and the byte where it starts there."""
    if layout == "hf":
        return name, 0
    source = original_source(name, config)
    first = 0 if source.rows is None else source.rows[0]
    return source.name, first * prod(shape[1:]) * 2  # only q, k and v start elsewhere, and they are bf16


def specs_of(config: ModelConfig, layout: Layout) -> list[TensorSpec]:
    """Every stored tensor of a layout."""
    return hf_specs(config) if layout == "hf" else original_specs(config)
