"""The benchmark's checkpoint in the forms that its peers read: the same values, exactly, in other files.

python -m tests.bench.peers.convert gguf MODEL SOURCES OUT     (its own process: the converter takes over sys.argv)
"""

from __future__ import annotations

import json
import runpy
import subprocess
import sys
from pathlib import Path

import torch

from shoal.kernels.mxfp4 import dequantize
from shoal.workers.checkpoint import open_checkpoint
from tests.bench.peers.contender import ROOT, PeerError


def dequantized(model: Path, out: Path) -> Path:
    """A directory with every expert in bf16, which holds each MXFP4 value exactly; made once."""
    from safetensors.torch import save_file

    if (out / "config.json").exists():
        return out
    out.mkdir(parents=True, exist_ok=True)
    checkpoint = open_checkpoint(model)
    config = json.loads((model / "config.json").read_text())
    everyone = range(checkpoint.config.num_experts)
    tensors: dict[str, torch.Tensor] = {}
    for name in _names(model):
        if name.endswith("_scales"):
            continue
        if not name.endswith("_blocks"):
            tensors[name] = checkpoint.tensor(name).contiguous()
            continue
        scales = checkpoint.experts(name.replace("_blocks", "_scales"), everyone)
        values = dequantize(checkpoint.experts(name, everyone), scales, torch.bfloat16)
        tensors[name.removesuffix("_blocks")] = values.transpose(1, 2).contiguous()
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    config.pop("quantization_config")
    (out / "config.json").write_text(json.dumps(config, indent=1))
    return out


def gguf(model: Path, sources: Path, out: Path) -> Path:
    """llama.cpp's file, made once with its own converter. Raises PeerError."""
    if out.exists():
        return out
    out.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "tests.bench.peers.convert", "gguf", str(model), str(sources), str(out)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        out.unlink(missing_ok=True)
        raise PeerError(f"llama.cpp's converter failed: {(done.stderr.strip() or 'silently').splitlines()[-1]}")
    return out


def _names(model: Path) -> list[str]:
    """Every tensor of the directory."""
    from safetensors import safe_open

    names: list[str] = []
    for file in sorted(model.glob("*.safetensors")):
        with safe_open(file, "pt") as opened:
            names += opened.keys()
    return names


def _run_converter(model: str, sources: str, out: str) -> None:
    sys.path[:0] = [sources, f"{sources}/gguf-py"]
    from conversion import gpt_oss  # type: ignore[import-not-found]  # part of llama.cpp's sources

    def no_vocabulary(self: object) -> None:
        """The tokenizer of a random checkpoint is of no use to anyone: token ids go in and come out."""
        self._set_vocab_none()  # type: ignore[attr-defined]  # a method of the converter's class
        self.gguf_writer.add_vocab_size(self.hparams["vocab_size"])  # type: ignore[attr-defined]  # the same

    gpt_oss.GptOssModel.set_vocab = no_vocabulary
    sys.argv = ["convert", model, "--outfile", out, "--outtype", "bf16"]
    runpy.run_path(f"{sources}/convert_hf_to_gguf.py", run_name="__main__")


if __name__ == "__main__":
    _run_converter(*sys.argv[2:])
