"""Steps that begin before the host knows what the last one chose: the same tokens, and nothing left behind."""

from __future__ import annotations

from collections.abc import Sequence as Seq
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from shoal.workers.engine.engine import Engine
from shoal.workers.engine.runner import Flight, Runner
from shoal.workers.engine.scheduler import Work
from shoal.workers.engine.sequence import Finish, Sequence, StopParams
from shoal.workers.errors import ExchangeError
from shoal.workers.experts.exchange import Wish
from shoal.workers.model.download import Download
from shoal.workers.model.sampling import SamplingParams
from tests.workers.engines import GREEDY, make_engine, random_tokens, run, sequence
from tests.workers.test_choosing import WAYS
from tests.workers.test_exactness import requests

Log = list[tuple[str, int]]


class Slow(Download):
    """What was chosen is not on the host before it is waited for."""

    def __init__(self, log: Log, tensors: Seq[Tensor]) -> None:
        self._log = log
        self._number = sum(what == "begin" for what, _ in log)
        self._device = [tensor.clone() for tensor in tensors]
        super().__init__([torch.full_like(tensor, -1) for tensor in tensors])
        log.append(("begin", self._number))

    def wait(self) -> list[Tensor]:
        if self._device:
            self._log.append(("wait", self._number))
            self._host, self._device = self._device, []
        return self._host


class Noting(Runner):
    """Notes what it is asked for, and when."""

    def __init__(self, engine: Engine, log: Log) -> None:
        super().__init__(engine.model, engine.decoder, partial(Slow, log))
        self._log = log

    def launch(self, work: Seq[Work], before: Flight | None = None) -> Flight:
        self._log.append(("launch", sum(what == "launch" for what, _ in self._log)))
        return super().launch(work, before)


def slow(path: Path, **options: Any) -> tuple[Engine, Log]:
    """An engine whose device takes its time, and the order in which things happen."""
    engine, log = make_engine(path, sampler="device", overlap=True, **options), Log()
    engine._runner = Noting(engine, log)
    return engine, log


@pytest.fixture(scope="module")
def plain(tiny: Path) -> list[list[int]]:
    """What steps one after the other give."""
    return run(make_engine(tiny), *requests())


@pytest.mark.parametrize("graphs", [False, True])
def test_the_device_goes_on_before_the_host_knows(tiny: Path, plain: list[list[int]], graphs: bool) -> None:
    """Every step but the first is launched before the one before it is waited for; the tokens are the same."""
    engine, log = slow(tiny, graphs=graphs)
    assert plain == run(engine, *requests())
    steps = engine.counters.steps
    launched = [number for what, number in log if what == "launch"]
    assert launched == list(range(len(launched)))
    for number in launched[1:]:
        assert log.index(("launch", number)) < log.index(("wait", number - 1)) < log.index(("begin", number))
    assert len(launched) == 12 == steps - 1, "what is known to be a last token has no step behind it"
    assert engine.decoder is None or engine.decoder.replays == 11


@pytest.mark.parametrize("options", [{"batch_tokens": 16}, {"kv_tokens": 112, "block_size": 8}, {"batch_size": 2}])
def test_chunks_preemption_and_queues_do_not_matter(
    tiny: Path, plain: list[list[int]], options: dict[str, int]
) -> None:
    """Prompts join while others decode, and blocks run out: a step under way lands first then."""
    engine, _ = slow(tiny, **options)
    assert plain == run(engine, *requests())
    assert (engine.counters.preemptions > 0) == ("kv_tokens" in options)


def test_what_the_host_chooses_is_waited_for(tiny: Path) -> None:
    """Beside sequences with penalties and biases nobody overtakes; each has its own tokens."""

    def one(name: str) -> Sequence:
        return sequence(random_tokens(9, 1000, 3), name=name, max_tokens=10, seed=4, sampling=WAYS[name])

    expected = [run(make_engine(tiny), one(name))[0] for name in WAYS]
    engine, log = slow(tiny)
    assert expected == run(engine, *map(one, WAYS))
    waits = {number: log.index(("wait", number)) for what, number in log if what == "wait"}
    assert all(waits[number - 1] < log.index(("launch", number)) for number in range(1, len(waits)))


def test_a_step_beyond_an_end_is_dropped(tiny: Path) -> None:
    """A stop token ends a sequence while the next step computes it: nothing of that is told, kept or found again."""
    tokens = run(make_engine(tiny), sequence(random_tokens(30, 1000, 1), max_tokens=30))[0]
    stop = StopParams(30, stop_token_ids=frozenset({tokens[9]}))
    expected = tokens[: tokens.index(tokens[9]) + 1]
    engine, log = slow(tiny)
    (found,) = run(engine, sequence(random_tokens(30, 1000, 1), stop=stop))

    assert expected == found
    assert sum(what == "launch" for what, _ in log) == len(expected) + 1, "one step too many was launched"
    assert engine.counters.generated_tokens == len(expected)
    assert engine.kv_used == 0.0
    more = sequence([*random_tokens(30, 1000, 1), *found], name="more", max_tokens=8)
    again = sequence([*random_tokens(30, 1000, 1), *found], name="again", max_tokens=8)
    assert run(make_engine(tiny), again) == run(engine, more)
    assert more.cached


def test_a_cancelled_sequence_is_not_told_of(tiny: Path) -> None:
    """It ends between two steps, with one of its tokens under way; its neighbour goes on."""
    engine, _ = slow(tiny)
    first, second = (sequence(random_tokens(20, 1000, n), name=f"r{n}", max_tokens=12) for n in (1, 2))
    expected = run(make_engine(tiny), sequence(random_tokens(20, 1000, 2), max_tokens=12))
    engine.submit(first)
    engine.submit(second)
    for _ in range(4):
        engine.step()
    engine.cancel("r1")
    known = first.num_generated
    ended, *more = engine.step().outputs
    while engine.has_work:
        more += engine.step().outputs

    assert all(output.sequence is second for output in more)
    assert (first, Finish.CANCELLED, known) == (ended.sequence, ended.finish, first.num_generated)
    assert expected == [second.tokens[20:]]
    engine.check_integrity()


def test_all_rest_with_nothing_under_way(tiny: Path) -> None:
    """Before a pause what was launched is told; afterwards everything goes on where it was."""
    engine, _ = slow(tiny)
    made = sequence(random_tokens(20, 1000, 1), max_tokens=12)
    expected = run(make_engine(tiny), sequence(random_tokens(20, 1000, 1), max_tokens=12))[0]
    engine.submit(made)
    told = [o for _ in range(5) for o in engine.step().outputs]
    rest = engine.step(Wish.PAUSE)
    assert rest.wishes is Wish.PAUSE
    assert [o.offset for o in (*told, *rest.outputs)] == [0, 1, 2, 3, 4]
    assert made.flying == made.owed == 0
    while engine.has_work:
        engine.step()
    assert expected == made.tokens[20:]


def break_a_launch(engine: Engine, monkeypatch: pytest.MonkeyPatch, wish: Wish) -> None:
    """One step whose exchange is gone when it is launched."""

    def broken(*_: object) -> Tensor:
        raise ExchangeError("gone")

    with monkeypatch.context() as patch:
        patch.setattr(engine.model, "forward", broken)
        with pytest.raises(ExchangeError):
            engine.step(wish)


@pytest.mark.parametrize("wish", [Wish.NONE, Wish.CANARY])
def test_a_step_that_could_not_begin_leaves_the_one_before(
    tiny: Path, monkeypatch: pytest.MonkeyPatch, wish: Wish
) -> None:
    """The exchange breaks at a launch: what was under way, landed already or not, is told with the next step, nothing
    twice."""
    engine, _ = slow(tiny)
    made = sequence(random_tokens(20, 1000, 1), max_tokens=12, sampling=SamplingParams(), seed=3)
    expected = run(
        make_engine(tiny), sequence(random_tokens(20, 1000, 1), max_tokens=12, sampling=SamplingParams(), seed=3)
    )
    engine.submit(made)
    told = [o for _ in range(3) for o in engine.step().outputs]
    break_a_launch(engine, monkeypatch, wish)
    while engine.has_work:
        told += engine.step().outputs
    assert list(range(12)) == [o.offset for o in told]
    assert expected == [made.tokens[20:]]
    engine.check_integrity()


def test_a_cancel_is_told_behind_what_was_chosen(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A step landed the one before and failed; who is cancelled then has its tokens told first, its end last."""
    engine, _ = slow(tiny)
    engine.submit(made := sequence(random_tokens(20, 1000, 1), max_tokens=12))
    told = [o for _ in range(3) for o in engine.step().outputs]
    break_a_launch(engine, monkeypatch, Wish.CANARY)
    assert made.num_generated > len(told)
    engine.cancel("r")
    told += engine.tell()
    assert [(n, None) for n in range(3)] + [(3, Finish.CANCELLED)] == [(o.offset, o.finish) for o in told]
    assert () == engine.tell() == engine.step().outputs


def test_nothing_overtakes_where_it_must_not(tiny: Path) -> None:
    """With guesses, or without its own sampler, a device waits for the host."""
    for options in ({"speculate": 2, "sampler": "device"}, {"sampler": "host"}):
        engine = make_engine(tiny, overlap=True, **options)
        made = sequence(random_tokens(20, 1000, 1), sampling=GREEDY)
        engine.submit(made)
        assert 1 == len(engine.step().outputs)
