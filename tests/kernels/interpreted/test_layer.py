"""What a layer of a decode step launches on a GPU, as the whole model says it in the interpreter."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from triton.runtime.interpreter import InterpretedFunction

from shoal.cluster.checkpoint.presets import Preset
from shoal.kernels import target
from shoal.workers.checkpoint.synthetic import SyntheticWeights
from shoal.workers.engine.engine import Engine
from tests.workers.engines import engine_of

MODEL = Preset("two layers", 2, 64, 32, 4, 4, 2, vocab_size=288, sliding_window=16)
LAYER = (
    "_linear_kernel",  # q, k and v
    "_attention_kernel",  # rotation, storing, attention
    "_linear_kernel",  # and the residual
    "_norm_linear_kernel",  # norm and router
    "_route_kernel",
    "_arrange_few_kernel",
    "_moe_matmul_kernel",  # gate, up and activation
    "_moe_matmul_kernel",  # down
    "_combine_kernel",  # weighted sum, residual and the next layer's norm
)
FREE = {"empty", "new_empty", "empty_like", "view", "slice"}
"""What torch does without launching anything."""


@pytest.fixture(autouse=True)
def use_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(target.OVERRIDE, "triton")


def engine() -> Engine:
    return engine_of(
        SyntheticWeights(MODEL.config(), 0, torch.device("cpu")), kv_tokens=64, batch_size=2, batch_tokens=16,
        caching=False, graphs=True,
    )  # fmt: skip


@contextmanager
def noting(launches: list[str]) -> Iterator[None]:
    """Inside, what would be launched is noted and not done."""

    class Torch(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch's own
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            name = func.overloadpacket.__name__
            if name not in FREE:
                launches.append(f"torch {name}")
            return func(*args, **(kwargs or {}))

    def note(kernel: InterpretedFunction[Any], *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        launches.append(kernel.fn.__name__)

    with mock.patch.object(InterpretedFunction, "run", note), Torch():  # type: ignore[no-untyped-call]  # as above
        yield


def test_a_layer_of_a_decode_step_is_nine_launches() -> None:
    """In a recorded step of a rank alone. Around the layers: embedding, its norm, and a copy to its place."""
    served = engine()
    assert served.decoder is not None
    launches: list[str] = []

    with noting(launches):
        served.decoder.record_all()

    step = launches[len(launches) - launches[::-1].index("torch index") - 1 :]
    assert step == ["torch index", "torch to", "_rms_norm_kernel", *LAYER, *LAYER, "torch copy_"]
