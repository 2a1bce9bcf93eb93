"""Which port a worker takes: one that was named, any free one, or the first free one of a few.

Several ranks share a machine, and whoever writes a firewall's rules wants to know their ports beforehand.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

T = TypeVar("T")

SPAN = 64
"""Ports tried from a first one on: more ranks than any machine has."""


def candidates(port: int, first_port: int) -> Sequence[int]:
    """Ports to try in order; 0 stands for any free one.

    >>> candidates(0, 0), candidates(7000, 20000), list(candidates(0, 65534))
    ((0,), (7000,), [65534, 65535])
    """
    if port or not first_port:
        return (port,)
    return range(first_port, min(first_port + SPAN, 65536))


def first_free(ports: Sequence[int], listen: Callable[[int], T]) -> T:
    """What `listen` returns for the first port that can be had. Raises the last OSError when none can."""
    for port in ports[:-1]:
        try:
            return listen(port)
        except OSError:
            continue
    return listen(ports[-1])
