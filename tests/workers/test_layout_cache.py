"""Experts kept on disk in a device's order: the same bits, or none."""

from __future__ import annotations

import os
import resource
import shutil
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from structlog.testing import capture_logs

from shoal.kernels import fragments, moe_matmul
from shoal.kernels import target as targets
from shoal.workers.checkpoint import Checkpoint, open_checkpoint
from shoal.workers.config import WorkerConfig
from shoal.workers.experts.bank import ExpertBank, open_bank
from shoal.workers.experts.layout_cache import LayoutCache, key_of
from shoal.workers.experts.supply import bytes_of
from shoal.workers.model.timing import Stopwatch
from shoal.workers.model.weights import FREE, LayerExperts, load_experts, sample_expert

CPU = torch.device("cpu")


class Counting:
    """Reads a checkpoint, and notes what it was asked for."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.checkpoint = checkpoint
        self.asked: list[tuple[int, list[int]]] = []

    def __call__(self, layer: int, ids: Sequence[int], spare_slots: int) -> LayerExperts:
        self.asked.append((layer, list(ids)))
        return load_experts(self.checkpoint, layer, ids, CPU, spare_slots)


@pytest.fixture
def checkpoint(tiny: Path) -> Iterator[Checkpoint]:
    with open_checkpoint(tiny) as opened:
        yield opened


def cache_in(folder: Path, checkpoint: Checkpoint, key: str = "key", threads: int = 1) -> LayoutCache:
    return LayoutCache(folder, key, sample_expert(checkpoint.config, CPU), threads)


def same(checkpoint: Checkpoint, layer: int, ids: Sequence[int], found: LayerExperts, spare: int = 0) -> bool:
    """Whether `found` is what reading the checkpoint gives."""
    expected = load_experts(checkpoint, layer, ids, CPU, spare)
    alike = (expected.ids, len(expected.parts[0])) == (found.ids, len(found.parts[0]))
    return alike and all(bytes_of(expected, slot) == bytes_of(found, slot) for slot in range(len(ids)))


def files_in(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize(("order", "threads"), [("cpu", 1), ("cpu", 3), ("gpu", 1)])
def test_what_was_read_once_comes_from_the_disk(
    checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, order: str, threads: int
) -> None:
    """Bit for bit, in any order, with free slots behind; of what is only partly there the rest is read and kept."""
    if order == "gpu":
        monkeypatch.setattr(moe_matmul, "prepare", lambda w, *, int8: fragments.permute(w))
    source = Counting(checkpoint)
    load = cache_in(tmp_path, checkpoint, threads=threads).through(source)
    assert same(checkpoint, 1, [2, 5, 0], load(1, [2, 5, 0], 2), 2)
    again = cache_in(tmp_path, checkpoint, threads=threads).through(source)
    assert same(checkpoint, 1, [0, 2], again(1, [0, 2], 1), 1)
    assert same(checkpoint, 1, [7, 5, 3, 0], again(1, [7, 5, 3, 0], 1), 1)
    assert same(checkpoint, 1, [3, 7], again(1, [3, 7], 0))
    assert same(checkpoint, 2, [2], again(2, [2], 0))
    assert [(1, [2, 5, 0]), (1, [7, 3]), (2, [2])] == source.asked


@pytest.mark.parametrize("damage", ["bit", "header", "short", "long", "empty", "swapped", "folder"])
def test_a_damaged_or_foreign_file_is_made_again(checkpoint: Checkpoint, tmp_path: Path, damage: str) -> None:
    """Whatever happened to it: it is not used, that is said once, and the next start finds a good one."""
    source = Counting(checkpoint)
    cache_in(tmp_path, checkpoint).through(source)(0, [1, 4], 0)
    file, other = (tmp_path / "key" / "0" / name for name in "14")
    content = bytearray(file.read_bytes())
    match damage:
        case "bit":
            content[-7] ^= 4
            file.write_bytes(content)
        case "header":
            content[0] ^= 1
            file.write_bytes(content)
        case "short":
            file.write_bytes(content[:-1])
        case "long":
            file.write_bytes(content + b"\0")
        case "empty":
            file.write_bytes(b"")
        case "swapped":
            shutil.copy(other, file)
        case "folder":
            file.unlink()
            file.mkdir()

    with capture_logs() as logs:
        assert same(checkpoint, 0, [1, 4], cache_in(tmp_path, checkpoint).through(source)(0, [1, 4], 0))
    wrong = [line for line in logs if line["log_level"] == "warning"]
    assert source.asked[1:] == [(0, [1])]
    assert 1 == sum("not used" in line["event"] for line in wrong)
    if damage != "folder":
        assert 1 == len(wrong)
        assert same(checkpoint, 0, [1, 4], cache_in(tmp_path, checkpoint).through(source)(0, [1, 4], 0))
        assert source.asked[2:] == []


def test_another_key_is_another_folder(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """Even a file that was put into the wrong folder by hand is not taken for one of it."""
    source = Counting(checkpoint)
    cache_in(tmp_path, checkpoint, "one").through(source)(0, [1], 0)
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    cache_in(tmp_path, checkpoint, "two").through(source)(0, [1], 0)
    assert 2 == len(source.asked)


def test_the_key_tells_everything_apart(
    checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another checkpoint, the same one written again, another order of bytes or device: each has its own folder."""
    target, sample = targets.choose("cpu"), sample_expert(checkpoint.config, CPU)
    copy = Path(shutil.copytree(checkpoint.path, tmp_path / "model"))
    with open_checkpoint(copy) as opened:
        assert key_of(checkpoint, target, sample) == key_of(opened, target, sample)
    for weights in copy.glob("*.safetensors"):
        os.utime(weights, ns=(1, 1))
    other = load_experts(checkpoint, 0, [3], CPU)
    with open_checkpoint(copy) as touched:
        keys = [
            key_of(checkpoint, target, sample),
            key_of(touched, target, sample),
            key_of(checkpoint, replace(target, backend="torch"), sample),
            key_of(checkpoint, target, other),
        ]
    monkeypatch.setattr("shoal.kernels.moe_matmul.LAYOUT", 10**6)
    keys.append(key_of(checkpoint, target, sample))
    assert len(keys) == len(set(keys))


def test_writers_do_not_disturb_each_other(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """Eight write and read the same experts at once: every one has the right bits, and whole files stay."""
    ids = [0, 3, 6]

    def one(_: int) -> bool:
        load = cache_in(tmp_path, checkpoint).through(Counting(checkpoint))
        return all(same(checkpoint, 0, ids, load(0, ids, 0)) for _ in range(3))

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(one, range(8)))
    assert ["0", "3", "6"] == [file.name for file in files_in(tmp_path)]
    source = Counting(checkpoint)
    assert same(checkpoint, 0, ids, cache_in(tmp_path, checkpoint).through(source)(0, ids, 0))
    assert [] == source.asked


def test_what_is_of_no_use_any_more_goes(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """A model that was written again takes the room of what it was, once it keeps something; another model's stays, and
    reading alone deletes nothing."""
    copy = Path(shutil.copytree(checkpoint.path, tmp_path / "model"))
    folder = tmp_path / "cache"

    def stage(path: Path) -> set[Path]:
        config = WorkerConfig(model=str(path), layout_cache=str(folder))
        with open_checkpoint(path) as opened:
            bank = open_bank(opened, targets.choose("cpu"), config, "n", Stopwatch())
            bank.stage([[1]] * opened.config.num_layers)
        return set(folder.glob("*/*"))

    (other,) = stage(checkpoint.path)
    (old,) = stage(copy) - {other}
    assert {other, old} == stage(copy)
    for weights in copy.glob("*.safetensors"):
        os.utime(weights, ns=(1, 1))
    (new,) = stage(copy) - {other}
    assert old != new
    assert old.parent == new.parent != other.parent
    assert {other, new} == stage(checkpoint.path)
    assert checkpoint.config.num_layers == len(files_in(new)) == len(files_in(other))


def test_what_a_killed_writer_left_goes(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """When somebody writes beside it and it is old; what another may be writing now stays."""
    layer = tmp_path / "key" / "2"
    layer.mkdir(parents=True)
    for name, age in (("left", 3700), ("begun", 5)):
        (layer / f".{name}").write_bytes(b"half")
        os.utime(layer / f".{name}", (time.time() - age,) * 2)
    cache_in(tmp_path, checkpoint).through(Counting(checkpoint))(2, [3], 0)
    assert [".begun", "3"] == [file.name for file in files_in(layer)]


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """The system refuses to write more to a file, as a full disk does."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_stops_nothing(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """Experts come from the checkpoint; that is said once, nothing half written stays, and no more is tried."""
    load = cache_in(tmp_path, checkpoint).through(Counting(checkpoint))
    size = 4096 + len(bytes_of(sample_expert(checkpoint.config, CPU), 0))
    with capture_logs() as logs, files_of_at_most(size - 1):
        for layer in range(3):
            assert same(checkpoint, layer, [1, 2], load(layer, [1, 2], 0))
    assert ["ordered experts are not kept any more"] == [line["event"] for line in logs]
    assert [] == files_in(tmp_path)


def test_a_folder_that_cannot_be_made_stops_nothing(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """A file is where the folder should be."""
    (tmp_path / "file").write_text("")
    load = cache_in(tmp_path / "file", checkpoint).through(Counting(checkpoint))
    assert same(checkpoint, 0, [1], load(0, [1], 0))


def test_a_bank_fills_itself_from_it(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """The second start of a worker reads no expert from the checkpoint, and has the same bits in the same slots."""
    wanted = [[0, 1, 2, 3]] * checkpoint.config.num_layers

    def fill() -> tuple[ExpertBank, int]:
        config = WorkerConfig(model=str(checkpoint.path), layout_cache=str(tmp_path), expert_spare_slots=1)
        before = checkpoint.bytes_read
        bank = open_bank(checkpoint, targets.choose("cpu"), config, "n", Stopwatch())
        staged = bank.stage(wanted)
        assert all(layer.ids == (0, 1, 2, 3, FREE) for layer in staged.views())
        bank.commit(staged)
        return bank, checkpoint.bytes_read - before

    (first, read), (second, again) = fill(), fill()
    assert read > 0 == again
    for layer, ids in enumerate(wanted):
        assert all(first.bytes_of(layer, expert) == second.bytes_of(layer, expert) for expert in ids)
