"""Members come, go, die and hang; who survives keeps its sequences, and every token stays what it was."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import grpc
import pytest

from shoal.cluster.placement import even_placement
from shoal.proto.v1 import watch_pb2, watch_pb2_grpc, worker_pb2_grpc
from shoal.proto.v1 import worker_pb2 as pb
from shoal.workers.errors import ExchangeError, StaleEpochError
from shoal.workers.experts.faults import Fault
from shoal.workers.experts.placement import Placement
from tests.workers.clients import StreamClient, connected, submit_message
from tests.workers.engines import make_engine, random_tokens, run, sequence
from tests.workers.processes import Crew, crew, states

LENGTH = 160
PROMPTS = {name: random_tokens(20, 1000, seed=i) for i, name in enumerate("abcd")}


@pytest.fixture(scope="module")
def alone(tiny: Path) -> dict[str, list[int]]:
    """What each prompt gives on an engine that nothing happens to."""
    engine = make_engine(tiny)
    return {n: run(engine, sequence(p, name=n, max_tokens=LENGTH))[0] for n, p in PROMPTS.items()}


class Running:
    """One long request on one worker, being read."""

    def __init__(self, hired: Crew, name: str, request: str) -> None:
        self.name = name
        self.client = StreamClient(hired.address(name))
        self.client.send(submit_message(request, PROMPTS[name], max_tokens=LENGTH))
        self._outputs: Iterator[pb.SequenceOutput] = self.client.outputs(request)
        self.tokens: list[int] = []

    def read(self, count: int) -> None:
        """Until it has so many tokens."""
        while len(self.tokens) < count:
            self.tokens += next(self._outputs).ids

    def finish(self) -> list[int]:
        """Read to the end."""
        for output in self._outputs:
            self.tokens += output.ids
        self.client.close()
        return self.tokens


def becomes(hired: Crew, names: str, wanted: set[str], within: float = 5.0) -> float:
    """Wait until all loops are in one of the `wanted` states; the seconds it took."""
    begin = time.monotonic()
    while not set(states(hired, names)) <= wanted:
        assert time.monotonic() - begin < within, states(hired, names)
        time.sleep(0.005)
    return time.monotonic() - begin


def test_survivors_of_a_death_go_on_where_they_were(tiny: Path, alone: dict[str, list[int]]) -> None:
    """kill -9 in the middle: the dead one's stream ends, the others' go on in the next epoch; then a replacement comes,
    and they do not notice. Sequences of all survivors are token-exact."""
    with crew(tiny, *"abc") as hired:
        hired.form(*"abc")
        running = [Running(hired, name, f"r-{name}") for name in "abc"]
        for one in running:
            one.read(20)
        hired.workers["b"].kill()
        assert becomes(hired, "ac", {"BROKEN"}) < 2.0
        with pytest.raises(grpc.RpcError):
            running[1].finish()
        reports = hired.form(*"ac", together=False)
        assert sum(report.experts_held for report in reports) == 4 * 8
        assert 0 < sum(report.experts_loaded for report in reports) < 4 * 8, "only what was lost is read"
        running[0].read(60)
        hired.hire("d")
        assert hired.form(*"acd")[0].experts_loaded == 0, "who only gives experts away reads none"
        newcomer = Running(hired, "d", "r-d")
        assert alone["a"] == running[0].finish()
        assert alone["c"] == running[2].finish()
        assert alone["d"] == newcomer.finish()


@pytest.mark.parametrize("settings", [{}, {"sampler": "device", "graphs": "on"}], ids=["host", "overlap"])
def test_a_group_grows_and_shrinks_under_load(
    tiny: Path, alone: dict[str, list[int]], settings: dict[str, str]
) -> None:
    """1 -> 2 -> 4 -> 3 -> 2 -> 1 while one sequence runs on the worker that stays: one epoch each, no token changed,
    where steps overlap while it is alone too. Whoever is left out rests and refuses what it still had, to be tried
    elsewhere."""
    with crew(tiny, *"abcd", **settings) as hired:
        hired.form("a")
        steady = Running(hired, "a", "steady")
        for number, members in enumerate(("ab", "abcd", "acd", "ad")):
            steady.read(20 * (number + 1))
            hired.form(*members)
            with connected(hired.address(members[-1])) as client:
                client.send(submit_message(f"new-{members}", PROMPTS["d"], max_tokens=8))
                tokens = [t for output in client.outputs(f"new-{members}") for t in output.ids]
            assert alone["d"][:8] == tokens
        leaving = Running(hired, "d", "leaving")
        leaving.read(8)
        hired.form("a")
        becomes(hired, "d", {"PAUSED"})
        hired.workers["d"].call("stop").result(10)
        while not (message := leaving.client.next()).HasField("refused"):
            pass
        assert message.refused.reason == pb.REFUSAL_REASON_UNAVAILABLE
        assert alone["a"] == steady.finish()


def test_a_hung_rank_is_left_behind_and_cannot_come_back(tiny: Path, alone: dict[str, list[int]]) -> None:
    """SIGSTOP: the others notice by the exchange's deadline and go on without it. When it wakes, its epoch is over: it
    wakes nobody, serves nothing, and no token of the others changes."""
    with crew(tiny, *"ab", collective_timeout=1.0) as hired:
        hired.form(*"ab")
        running = Running(hired, "a", "r")
        running.read(20)
        hired.workers["b"].signal(signal.SIGSTOP)
        assert becomes(hired, "a", {"BROKEN"}) < 3.0
        hired.form("a", together=False)
        running.read(60)
        hired.workers["b"].signal(signal.SIGCONT)
        becomes(hired, "b", {"BROKEN"})
        with grpc.insecure_channel(hired.address("a")) as channel:
            stub = worker_pb2_grpc.WorkerServiceStub(channel)
            assert not stub.Wake(pb.WakeRequest(epoch=1, step=10**9), timeout=5).joined
        with connected(hired.address("b")) as client:
            assert not client.stub.GetStatus(pb.GetStatusRequest()).ready
        assert alone["a"] == running.finish()


def test_whoever_waits_for_a_lost_rank_leaves_as_soon_as_it_is_told(tiny: Path, alone: dict[str, list[int]]) -> None:
    """Nobody can kill the one that hangs, and the deadline is far: the next epoch comes at once all the same. What the
    lost one still sends when it wakes is heard by nobody."""
    with crew(tiny, *"ab", collective_timeout=60.0) as hired:
        hired.form(*"ab")
        running = Running(hired, "a", "r")
        running.read(20)
        hired.workers["b"].signal(signal.SIGSTOP)
        time.sleep(0.3)
        assert states(hired, "a") == ["SERVING"]
        hired.begin(hired.spec("a"), together=False)[0].result(15)
        running.read(40)
        hired.workers["b"].signal(signal.SIGCONT)
        assert alone["a"] == running.finish()


def test_killing_a_hung_rank_frees_the_others_at_once(tiny: Path) -> None:
    """They sit in a collective, and nobody tells them anything; the end of the hung one's sockets ends it."""
    with crew(tiny, *"ab", collective_timeout=60.0) as hired:
        hired.form(*"ab")
        Running(hired, "a", "r").read(20)
        hired.workers["b"].signal(signal.SIGSTOP)
        time.sleep(0.3)
        assert states(hired, "a") == ["SERVING"]
        hired.workers["b"].kill()
        assert becomes(hired, "a", {"BROKEN"}) < 1.0


def test_a_death_while_the_epoch_changes_is_another_epoch(tiny: Path, alone: dict[str, list[int]]) -> None:
    """Who waits for the dead one is called off by the next epoch; an older one is refused for ever."""
    with crew(tiny, *"abc") as hired:
        hired.form(*"ab")
        running = Running(hired, "a", "r")
        running.read(20)
        hired.workers["c"].signal(signal.SIGSTOP)
        stuck = hired.spec(*"abc")
        waiting = hired.begin(stuck, together=True)
        becomes(hired, "ab", {"PAUSED"})
        hired.workers["c"].kill()
        hired.form(*"ab")
        assert all(isinstance(future.exception(10), ExchangeError) for future in waiting[:2])
        with pytest.raises(StaleEpochError):
            hired.workers["a"].call("reconfigure", stuck, True).result(10)
        assert alone["a"] == running.finish()


def test_a_sleeping_group_hears_of_a_new_epoch(tiny: Path, alone: dict[str, list[int]]) -> None:
    """Nobody has work, no collective is outstanding: the change wakes everybody. Copies of experts change no token."""
    with crew(tiny, *"ab") as hired:
        hired.form(*"ab")
        time.sleep(0.2)
        even = even_placement(4, 8, 2).holders[0]
        copies = Placement(2, ((*even[:7], (0, 1)),) * 4)
        assert [r.experts_loaded for r in hired.form(*"ab", placement=copies)] == [4, 0]
        assert alone["b"] == Running(hired, "b", "r").finish()


def test_watching_tells_of_a_change_at_once(tiny: Path) -> None:
    """The controller hears of states by a stream, with a heartbeat; its end is the sign of a death."""
    with crew(tiny, *"ab") as hired, ExitStack() as stack:
        channel = stack.enter_context(grpc.insecure_channel(hired.address("a")))
        words = watch_pb2_grpc.WorkerWatchServiceStub(channel).Watch(watch_pb2.WatchRequest(period_ms=10_000))
        assert next(words).state == watch_pb2.WORKER_STATE_IDLE
        hired.form(*"ab")
        word = next(words)
        assert (word.state, word.epoch > 0) == (watch_pb2.WORKER_STATE_SERVING, True)
        Running(hired, "b", "r").read(20)
        hired.workers["b"].kill()
        assert next(words).state == watch_pb2.WORKER_STATE_BROKEN
        hired.workers["a"].kill()
        with pytest.raises(grpc.RpcError):
            next(words)


def test_a_damaged_message_and_a_silent_rank_cost_an_epoch(tiny: Path, alone: dict[str, list[int]]) -> None:
    """Faults put in on purpose: a flipped bit is refused by its seal, a rank that takes no part by the deadline; the
    same members meet again and no token changes. Where faults are not allowed they are refused."""
    with crew(tiny, *"ab", chaos=True, collective_timeout=1.0) as hired:
        hired.form(*"ab")
        running = Running(hired, "a", "r")
        running.read(20)
        for fault, seconds in ((Fault.CORRUPT, 0.0), (Fault.DROP, 1.5)):
            hired.workers["b"].call("inject", fault, seconds, 0.0).result(10)
            becomes(hired, "ab", {"BROKEN"})
            hired.form(*"ab", together=False)
            running.read(len(running.tokens) + 10)
        hired.workers["b"].call("inject", Fault.DELAY, 1.0, 0.01).result(10)
        assert alone["a"] == running.finish()
    with crew(tiny, "a") as hired, pytest.raises(ExchangeError, match=r"worker\.chaos"):
        hired.workers["a"].call("inject", Fault.CORRUPT, 0.0, 0.0).result(10)
