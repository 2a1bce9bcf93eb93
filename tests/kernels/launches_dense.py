"""Every variant of the kernels around attention and experts, launched at the shapes of gpt-oss."""

from __future__ import annotations

import torch

from shoal.kernels import _dense, _norm, _norm_linear, _sampling, sampling

HIDDEN, HEADS, QKV, VOCABULARY = 2880, 4096, 5120, 201088


def _t(*shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def launch_dense() -> None:
    """Every launcher once per variant of its kernel, on tensors without data."""
    for rows in (1, 32, 64, 128, 512, 4096):
        _dense.linear(_t(rows, HIDDEN), _t(QKV, HIDDEN), _t(QKV))
        _dense.linear(_t(rows, HEADS), _t(HIDDEN, HEADS), _t(HIDDEN), None, _t(rows, HIDDEN))
    for rows in (1, 64):
        _dense.linear(_t(rows, HIDDEN), _t(VOCABULARY, HIDDEN), None, torch.float32)
    _norm.rms_norm(_t(64, HIDDEN), _t(HIDDEN), 1e-5)
    _norm.rms_norm(_t(64, HIDDEN), _t(HIDDEN), 1e-5, _t(3, dtype=torch.int64))
    for experts in (32, 128):
        _norm_linear.norm_linear(_t(64, HIDDEN), _t(HIDDEN), 1e-5, _t(experts, HIDDEN), _t(experts))
    logits, settings = _t(64, VOCABULARY, dtype=torch.float32), _t(64, sampling.WIDTH, dtype=torch.int64)
    masks = _t(3, -(-VOCABULARY // 32), dtype=torch.int32)
    _sampling.sample(logits, settings, None, top_k=False, top_p=False, logprobs=None)
    _sampling.sample(logits, settings, masks, top_k=True, top_p=True, logprobs=20)
