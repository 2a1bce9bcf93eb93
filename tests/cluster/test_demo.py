"""The demonstration's figures; the whole of it is run by `make demo`."""

from __future__ import annotations

import pytest
from rich.console import Console

from shoal.cluster import demo
from shoal.cluster.errors import UnhealthyError
from shoal.cluster.terminal import Turn
from shoal.proto.v1 import worker_pb2


def test_a_row_sums_what_a_rank_computed() -> None:
    """Rank, worker, layers, experts, tokens through them and the busiest of them."""
    status = worker_pb2.GetStatusResponse(identity=worker_pb2.Welcome(rank=1))
    for layer, expert, tokens in ((0, 4, 3), (0, 5, 0), (1, 4, 2), (1, 5, 9)):
        status.expert_loads.add(layer=layer, expert=expert, tokens=tokens)
    assert demo.expert_row("g0-1", status) == ("1", "g0-1", "2", "4-5", "14", "layer 1, expert 5")


def test_a_rank_without_load_has_a_row_too() -> None:
    """Zero is a figure."""
    assert demo.expert_row("g0-0", worker_pb2.GetStatusResponse()) == ("0", "g0-0", "0", "", "0", "")


def test_a_stream_that_broke_off_fails_the_demonstration() -> None:
    """It must not end with 0 after half an answer."""
    with pytest.raises(UnhealthyError, match="without its last event"):
        demo.report(Turn(), Console(quiet=True))
