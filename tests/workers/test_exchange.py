"""The exchange: every row arrives where it belongs, and what was not agreed is refused."""

from __future__ import annotations

import threading
import time
import traceback
import types
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.distributed.distributed_c10d as c10d
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.cluster.placement import even_placement
from shoal.workers.errors import ExchangeError
from shoal.workers.experts.exchange import Exchange, Wish
from shoal.workers.experts.group_exchange import GroupExchange
from shoal.workers.experts.placement import Placement
from shoal.workers.experts.process_group import ProcessGroup
from shoal.workers.experts.rendezvous import RendezvousServer, connect
from tests.workers.groups import exchanges, on_ranks

WIDTH, TOP_K, EXPERTS = 16, 2, 6


def serve(end: Exchange, layer: int, x_dp: torch.Tensor, ids_dp: torch.Tensor) -> torch.Tensor:
    """One layer whose expert e adds 100 * (e + 1) to the token."""
    end.agree(0, x_dp.shape[0], Wish.NONE)
    handle = end.dispatch(layer, x_dp, ids_dp)
    rows = [
        handle.x_ep[r] + 100 * (int(e) + 1)
        for r, ids in enumerate(handle.ids_ep)
        for e in ids.tolist()
        if e >= 0
    ]  # fmt: skip
    return end.combine(torch.stack(rows) if rows else x_dp.new_zeros(0, x_dp.shape[1]), handle)


@settings(max_examples=12, deadline=None)
@given(
    st.integers(1, 4), st.integers(0, 1000), st.lists(st.integers(0, 5), min_size=4, max_size=4), st.booleans(),
    st.sampled_from(["", "GPU-7"]), st.sampled_from([torch.float32, torch.bfloat16]),
)  # fmt: skip
def test_every_row_comes_back_to_its_token(
    size: int, seed: int, tokens: list[int], copies: bool, place: str, dtype: torch.dtype
) -> None:
    """For any number of tokens per rank, none included, each (token, expert) row returns in top-k order; also where
    the ranks share one GPU and everything passes through the host."""
    g = torch.Generator().manual_seed(seed)
    placement = even_placement(1, EXPERTS, size)
    if copies:
        placement = Placement(size, (tuple(tuple(sorted({*r, (r[0] + 1) % size})) for r in placement.holders[0]),))
    x = [torch.randn(tokens[r], WIDTH, generator=g).to(dtype) for r in range(size)]
    ids = [
        torch.stack([torch.randperm(EXPERTS, generator=g)[:TOP_K] for _ in range(n)]).int() if (n := tokens[r])
        else torch.zeros(0, TOP_K, dtype=torch.int32)
        for r in range(size)
    ]  # fmt: skip
    ends = exchanges(size, placement, TOP_K, place=place)
    results = on_ranks(size, lambda r: serve(ends[r], 0, x[r], ids[r]))
    for r in range(size):
        assert torch.equal(x[r][:, None] + 100 * (ids[r][:, :, None] + 1), results[r])
        ends[r].close()


def pair(timeout: float = 20.0) -> list[GroupExchange]:
    ends = exchanges(2, even_placement(1, EXPERTS, 2), TOP_K, timeout)
    assert all(isinstance(end, GroupExchange) for end in ends)
    return [end for end in ends if isinstance(end, GroupExchange)]


def test_ranks_at_different_steps_are_refused() -> None:
    """A rank that is not at the same step is noticed before anything is computed."""
    ends = pair()

    def agree(rank: int) -> str:
        with pytest.raises(ExchangeError) as error:
            ends[rank].agree(rank, 1, Wish.NONE)
        return str(error.value)

    assert all("step" in message for message in on_ranks(2, agree))


@pytest.mark.parametrize("bit", [0, 22, 31])
@pytest.mark.parametrize("collective", ["all_gather", "all_to_all"])
def test_a_damaged_message_is_refused(collective: str, bit: int) -> None:
    """One flipped bit on the way breaks the seal: of an expert's id, of an activation, the sign too."""
    ends = pair()
    ids = torch.tensor([[0, 3], [1, 4]], dtype=torch.int32)

    def dispatch(rank: int) -> bool:
        ends[rank].agree(0, 2, Wish.NONE)
        if rank == 0:
            damage(ends[0], collective, bit)
        try:
            ends[rank].dispatch(0, torch.randn(2, WIDTH), ids)
        except ExchangeError as error:
            return "damaged" in str(error)
        finally:
            ends[rank].close()
        return False

    assert on_ranks(2, dispatch)[0]


def damage(end: GroupExchange, collective: str, bit: int) -> None:
    """From now on that bit of the last word but one is another in what comes."""
    real = getattr(end._group, collective)
    word = -2 if collective == "all_gather" else -2 - WIDTH  # behind the rows of an all-to-all is the seal

    def damaged(*arguments: Any) -> Any:
        result = real(*arguments)
        came = result if collective == "all_gather" else arguments[0]
        came.view(torch.uint8).view(-1)[4 * word + bit // 8] ^= 1 << bit % 8
        return result

    setattr(end._group, collective, damaged)


def test_a_silent_peer_is_noticed_at_the_deadline() -> None:
    """A peer that never calls costs the timeout, not for ever."""
    ends = pair(timeout=1.0)
    start = time.monotonic()
    with pytest.raises(ExchangeError):
        ends[0].agree(0, 1, Wish.NONE)
    assert 0.5 < time.monotonic() - start < 10


def frames_of(error: BaseException | None) -> Iterator[types.FrameType]:
    """Whatever an exception keeps alive, of its causes too."""
    while error is not None:
        yield from (frame for frame, _ in traceback.walk_tb(error.__traceback__))
        error = error.__cause__ or error.__context__


def test_a_peer_that_came_and_left_is_not_waited_for() -> None:
    """It said that it is here, heard of a newer epoch, and never connects; nor does this rank once it hears of it."""
    port = RendezvousServer("127.0.0.1")
    place, unwanted = ("127.0.0.1", port.port, "left"), threading.Event()
    peer = connect("127.0.0.1", port.port)
    peer.set("left/here/1", b"")
    threading.Timer(0.3, unwanted.set).start()
    with pytest.raises(ExchangeError, match="a newer epoch is wanted"):
        ProcessGroup(*place, 0, 2, 10.0, torch.device("cpu"), unwanted.is_set)


@pytest.mark.parametrize("told", [True, False])
def test_no_failed_collective_holds_its_group(told: bool) -> None:
    """A peer is silent: the wait ends as soon as this rank is told that the epoch is over, or at the deadline. Whoever
    holds the group last waits for gloo's threads, and that must not be whoever catches the error."""
    port = RendezvousServer("127.0.0.1")
    over, timeout = threading.Event(), 60.0 if told else 0.5

    def join(rank: int) -> ProcessGroup:
        place = ("127.0.0.1", port.port, f"held/{told}")
        return ProcessGroup(*place, rank, 2, timeout, torch.device("cpu"), over=over.is_set)

    group, silent = on_ranks(2, join)
    if told:
        threading.Timer(0.3, over.set).start()
    with pytest.raises(ExchangeError, match="the epoch is over" if told else "failed") as caught:
        group.all_gather(torch.zeros(1))
    held = [type(value) for frame in frames_of(caught.value) for value in frame.f_locals.values()]
    assert c10d.ProcessGroupGloo not in held
    silent.close()
    group.close()
