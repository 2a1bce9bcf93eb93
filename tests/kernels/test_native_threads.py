"""The pool of threads: never in the way, whoever calls and however often."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from shoal.kernels.native.binding import Library
from tests.kernels.cases import Cases
from tests.kernels.native_libraries import assert_same_bits, every_library


@every_library
def test_the_number_of_threads_changes_nothing_but_time(library: Library) -> None:
    """Growing, shrinking and growing again, over many calls in a row."""
    x, weight = Cases(1).normal(3, 64), Cases(2).normal(300, 64).bfloat16()
    library.set_threads(1)
    expected = library.linear(x, weight, None)

    for count in (4, 1, 2, 3, 2):
        library.set_threads(count)
        assert library.threads == count
        for _ in range(50):
            assert_same_bits(expected, library.linear(x, weight, None))
    library.set_threads(1)


@every_library
def test_callers_on_several_threads_do_not_disturb_each_other(library: Library) -> None:
    """One gets the pool, the others compute alone; all are right."""
    weight = Cases(3).normal(300, 64).bfloat16()
    inputs = [Cases(seed).normal(5, 64) for seed in range(4)]
    library.set_threads(1)
    expected = [library.linear(x, weight, None) for x in inputs]

    library.set_threads(2)
    with ThreadPoolExecutor(4) as callers:
        for _ in range(25):
            for right, out in zip(
                expected, callers.map(lambda x: library.linear(x, weight, None), inputs), strict=True
            ):
                assert_same_bits(right, out)
    library.set_threads(1)


@every_library
def test_no_threads_at_all_is_our_mistake(library: Library) -> None:
    """At least the calling thread works."""
    with pytest.raises(AssertionError):
        library.set_threads(0)


def test_a_forked_child_starts_with_a_pool_of_its_own() -> None:
    """The parent's helpers do not exist in the child: it must not wait for them, and may ask for its own."""
    code = """
import os, torch
from shoal.kernels import native
x, w = torch.ones(2, 64), torch.ones(500, 64).bfloat16()
native.set_threads(2)
native.linear(x, w, None)
child = os.fork()
if child == 0:
    same = native.linear(x, w, None)
    native.set_threads(2)
    os._exit(0 if torch.equal(same, native.linear(x, w, None)) else 1)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60)
    assert done.stdout == "0\n", done.stderr


@every_library
def test_a_strided_tensor_is_refused(library: Library) -> None:
    """Pointers know no strides: an assertion, not wrong numbers."""
    with pytest.raises(AssertionError):
        library.linear(torch.ones(64, 2).T, torch.ones(4, 64).bfloat16(), None)
    with pytest.raises(AssertionError):
        library.linear(torch.ones(2, 64).double(), torch.ones(4, 64).bfloat16(), None)
