"""The one table from devices to backends, and its override."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Iterator

import pytest
import torch

from shoal.kernels import dense, native, target
from tests.kernels.cases import Cases

CPU = torch.zeros(1)


@pytest.fixture(autouse=True)
def fresh_table(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Each test decides anew, and leaves no decision behind."""
    monkeypatch.delenv(target.OVERRIDE, raising=False)
    target._resolve.cache_clear()
    yield
    target._resolve.cache_clear()


@pytest.fixture
def no_native(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "available", lambda: False)
    monkeypatch.setattr(native, "reason", lambda: "no compiler was found")


def test_a_cpu_that_can_build_them_serves_native_kernels() -> None:
    """fp32 activations; the kernel class says whether a multiply-add rounds once, which decides every bit."""
    if not native.available():
        pytest.skip(f"no native kernels here: {native.reason()}")

    chosen = target.choose("cpu")

    assert ("native", torch.float32) == (chosen.backend, chosen.dtype)
    assert f"cpu-{'fma' if native.fused() else 'portable'}-v2" == chosen.kernel_class
    assert target.backend_for(CPU) == "native"


@pytest.mark.usefixtures("no_native")
def test_a_cpu_that_cannot_falls_to_the_twins_and_says_so_once(caplog: pytest.LogCaptureFixture) -> None:
    """One warning with the reason, however often the table is asked."""
    with caplog.at_level(logging.WARNING):
        backends = {target.choose("cpu").backend, target.backend_for(CPU), target.backend_for(CPU)}

    assert {"torch"} == backends
    assert len(caplog.records) == 1
    assert "no compiler was found" in caplog.text
    assert target.choose("cpu").kernel_class == "cpu-torch-v2"


def test_the_environment_overrides_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    """And the launchers follow it: the result is the twin's, bit for bit."""
    monkeypatch.setenv(target.OVERRIDE, "torch")
    x, w = Cases(seed=1).normal(3, 64), Cases(seed=2).normal(5, 64).bfloat16()

    assert target.backend_for(x) == "torch"
    assert torch.equal(dense.linear_torch(x, w, None), dense.linear(x, w, None))


def test_an_unknown_override_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Naming the variable and what it may say."""
    monkeypatch.setenv(target.OVERRIDE, "cuda")

    with pytest.raises(target.BackendError, match=r"SHOAL_KERNELS: expected one of .*, found 'cuda'"):
        target.backend_for(CPU)


@pytest.mark.usefixtures("no_native")
def test_native_that_was_asked_for_but_cannot_be_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fallback that nobody asked for would hide it."""
    monkeypatch.setenv(target.OVERRIDE, "native")

    with pytest.raises(target.BackendError, match="no compiler was found"):
        target.backend_for(CPU)


@pytest.mark.parametrize("device", ["tpu", "mps", "xpu:0"])
def test_an_unknown_device_is_refused(device: str) -> None:
    """Whether torch knows the word or not."""
    with pytest.raises(target.BackendError, match=f"expected auto, cpu, cuda or cuda:N, found '{device}'"):
        target.choose(device)


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what a machine without CUDA says")
def test_cuda_without_cuda_is_refused_and_auto_takes_the_cpu() -> None:
    """Never a silent CPU for someone who asked for a GPU."""
    with pytest.raises(target.BackendError, match="torch sees no CUDA device"):
        target.choose("cuda:1")
    assert target.choose("auto").device.type == "cpu"


def test_triton_on_a_cpu_means_the_interpreter() -> None:
    """Switched on in time by the table itself; too late, after triton was imported without it, is an error."""
    script = "import torch, {first}shoal.kernels.target as t; print(t.choose('cpu').kernel_class)"
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"} | {
        target.OVERRIDE: "triton",
        "PYTHONPATH": os.pathsep.join(sys.path),
    }

    def run(first: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", script.format(first=first)]
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)

    assert run("").stdout.strip() == "cpu-interpreted-v3"
    assert "TRITON_INTERPRET=1 before triton is imported" in run("triton, ").stderr
