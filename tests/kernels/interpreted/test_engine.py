"""The engine's path on a GPU, from requests to tokens, on the Triton kernels in the interpreter.

What a sequence generates is its own, whatever is around it.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from triton.runtime.interpreter import InterpretedFunction

from shoal.cluster.checkpoint.make import make_checkpoint
from shoal.cluster.checkpoint.presets import Preset
from shoal.kernels import chips, target
from shoal.workers.engine.sequence import Sequence
from shoal.workers.model.sampling import SamplingParams
from tests.workers.engines import make_engine, random_tokens, run, sequence
from tests.workers.groups import run_group

MODEL = Preset("two layers", 2, 64, 32, 4, 4, 2, vocab_size=288, sliding_window=16)
LENGTHS = (1, 5, 18)
FEW: dict[str, Any] = {"kv_tokens": 256, "batch_size": 3, "batch_tokens": 16, "caching": False}

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # rows that only fill a step up may hold anything


@pytest.fixture(autouse=True, scope="module")
def one_kernel_at_a_time() -> Iterator[None]:
    """Ranks are threads here, and the interpreter knows one grid. Large tiles on few multiprocessors: it likes them."""
    alone, run_kernel = threading.Lock(), InterpretedFunction.run

    def run_alone(*args: Any, **kwargs: Any) -> None:
        with alone:
            run_kernel(*args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(target.OVERRIDE, "triton")
        patch.setattr(chips, "WITHOUT_GPU", replace(chips.CHIPS["sm80"], multiprocessors=1))
        patch.setattr(InterpretedFunction, "run", run_alone)
        yield


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("two") / "model", MODEL, seed=1)


def requests() -> list[Sequence]:
    """Greedy and drawn, shorter and longer than a step and than a window."""
    return [
        sequence(
            random_tokens(length, 288, seed=length), name=f"r{length}", max_tokens=3, seed=length,
            sampling=SamplingParams(temperature=0.0 if length == 5 else 1.0),
        )
        for length in LENGTHS
    ]  # fmt: skip


@pytest.fixture(scope="module")
def alone(path: Path) -> list[list[int]]:
    """What each generates by itself, nothing recorded, chosen on the host."""
    return [run(make_engine(path, **FEW), request)[0] for request in requests()]


def test_the_cpus_kernels_choose_the_same(path: Path, alone: list[list[int]], monkeypatch: pytest.MonkeyPatch) -> None:
    """Another class of kernels rounds elsewhere, but means the same model: every norm is the one of its own layer."""
    monkeypatch.setenv(target.OVERRIDE, "torch")

    assert alone == run(make_engine(path, **FEW), *requests())


def test_neighbours_recordings_and_overlap_decide_nothing(path: Path, alone: list[list[int]]) -> None:
    """All at once in chunks, then in recorded steps that choose on the device and begin before the host knows what."""
    assert alone == run(make_engine(path, sampler="device", graphs=True, overlap=True, **FEW), *requests())


def test_two_ranks_give_the_tokens_of_one(path: Path, alone: list[list[int]]) -> None:
    """Half of the experts each, rows exchanged and added where their tokens are; one replays, the other does not."""
    r = requests()

    assert alone == run_group(path, 2, [r[:2], r[2:]], graphs=[True, False])
