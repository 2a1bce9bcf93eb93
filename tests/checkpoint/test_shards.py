"""`shoal.cluster.checkpoint.shards`, read back by the safetensors package."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from shoal.cluster.checkpoint.presets import PRESETS
from shoal.cluster.checkpoint.shards import ShardWriter, header, nbytes, plan_shards
from shoal.workers.checkpoint.layout import TensorSpec, hf_specs, original_specs
from shoal.workers.checkpoint.safetensors_file import parse_header

SPECS = [TensorSpec("a", (3, 5), ("U8",)), TensorSpec("b", (4,), ("BF16",)), TensorSpec("c", (2, 1), ("F32",))]


def test_published_file_names() -> None:
    """Both published models are cut into as many files, of the same names, as were published."""
    names = [shard.name for shard in plan_shards(hf_specs(PRESETS["20b"].config()), "hf")]
    assert names == [f"model-0000{number}-of-00002.safetensors" for number in range(3)]
    assert len(plan_shards(hf_specs(PRESETS["120b"].config()), "hf")) == 15
    assert [s.name for s in plan_shards(original_specs(PRESETS["20b"].config()), "original")] == ["model.safetensors"]


@given(st.lists(st.integers(1, 100), min_size=1), st.integers(1, 200))
def test_deals_out_everything_in_order(sizes: list[int], largest: int) -> None:
    """Every tensor is in one file, in order; a file over the limit holds a single tensor."""
    specs = [TensorSpec(str(number), (size,), ("U8",)) for number, size in enumerate(sizes)]
    shards = plan_shards(specs, "hf", largest)
    assert specs == [spec for shard in shards for spec in shard.specs]
    assert all(len(shard.specs) == 1 or sum(map(nbytes, shard.specs)) <= largest for shard in shards)
    assert len({shard.name for shard in shards}) == len(shards)


def test_header_is_aligned() -> None:
    """The data starts at a multiple of 8, and the reader accepts the header."""
    (shard,) = plan_shards(SPECS, "hf")
    head = header(shard)
    assert len(head) % 8 == 0
    entries = parse_header(Path("f"), head[8:], len(head) + sum(map(nbytes, SPECS)))
    assert [spec.name for spec in SPECS] == list(entries)


def test_the_package_reads_it(tmp_path: Path) -> None:
    """Bytes written in any order are where the safetensors package looks for them."""
    with ShardWriter(tmp_path, plan_shards(SPECS, "hf")) as writer:
        writer.write("c", 4, memoryview(torch.tensor([2.0]).numpy().tobytes()))
        writer.write("a", 0, memoryview(bytes(range(15))))
        writer.write("c", 0, memoryview(torch.tensor([1.0]).numpy().tobytes()))
    tensors = load_file(tmp_path / "model.safetensors")
    assert tensors["c"].tolist() == [[1.0], [2.0]]
    assert tensors["a"].flatten().tolist() == list(range(15))
    assert tensors["b"].tolist() == [0.0] * 4


def test_never_overwrites(tmp_path: Path) -> None:
    """A file of that name is left as it is."""
    (tmp_path / "model.safetensors").write_text("precious")
    with pytest.raises(FileExistsError):
        ShardWriter(tmp_path, plan_shards(SPECS, "hf"))
    assert (tmp_path / "model.safetensors").read_text() == "precious"
