"""Products of Triton's interpreter as a tensor core's accumulator sees them: inputs in order, one sum per output.

The interpreter multiplies with numpy, whose order of summing follows the shapes and the machine's library. A kernel
that claims the same bits for every tile then cannot be held to it. With `install`, an output is its accumulator plus
the first product, plus the second, and so on: what remains of a difference is the kernel's own.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

_library_dot = InterpreterBuilder.create_dot


def _ordered_dot(self: Any, a: Any, b: Any, d: Any, input_precision: Any, max_num_imprecise_acc: Any) -> Any:
    if a.data.dtype != np.float32 or b.data.dtype != np.float32 or a.data.ndim != 2:
        return _library_dot(self, a, b, d, input_precision, max_num_imprecise_acc)
    total = d.data.astype(np.float32, copy=True)
    for k in range(a.data.shape[1]):
        total += a.data[:, k, None] * b.data[None, k, :]
    return TensorHandle(total, d.dtype.scalar)


def install() -> None:
    """For the rest of the process."""
    InterpreterBuilder.create_dot = _ordered_dot
