"""`shoal bench` against a real router in front of scripted workers: what is asked is what arrives, and is counted."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from shoal.cluster.bench import online
from shoal.cluster.bench.drive import Driver, Manner
from shoal.cluster.bench.lengths import Lengths
from shoal.cluster.bench.online import Options, workload
from shoal.cluster.bench.outcome import Outcome
from shoal.cluster.bench.score import Objective, figures
from shoal.cluster.bench.workload import Workload, draw
from shoal.cluster.config import load
from shoal.cluster.errors import CallError, ConfigError
from shoal.cluster.own_access import OwnAccess
from shoal.proto.v1 import worker_pb2 as pb
from shoal.router.fleet.scripted_worker import LENGTH, Action, Refuse, Say
from tests.cluster.test_cli import BLOCKED
from tests.router.conftest import Cluster, StartCluster, StartRouter

LOAD = Workload(Lengths("uniform", 3, 9), Lengths("uniform", 1, 6), conversations=20, concurrency=3)
OPTIONS = Options(
    concurrency=4, rate=None, poisson=True, requests=12, seconds=None, prompt="8", output="uniform:2:5",
    shared_prefix=0, turns=1, warm_up=2, slo_ttft=5000.0, slo_itl=None, temperature=1.0, seed=0, salt=1, timeout=30.0,
    model="", json=None, plot=None, address=None,
)  # fmt: skip


async def echoing(submit: pb.Submit) -> AsyncIterator[Action]:
    """As many tokens as were asked for, one message each: 100, 101, …"""
    for i in range(submit.limits.max_tokens):
        await asyncio.sleep(0)
        yield Say((100 + i,), LENGTH if i + 1 == submit.limits.max_tokens else pb.SEQUENCE_FINISH_UNSPECIFIED)


def prompt_of(submit: pb.Submit) -> tuple[int, ...]:
    """All its tokens."""
    return tuple(token for part in submit.prompt for token in part.ids)


def manner(cluster: Cluster, **changed: Any) -> Manner:
    """Greedy, at this cluster."""
    return replace(Manner(cluster.front.listening.address, "", 0.0, 30.0, OwnAccess()), **changed)


async def closed(cluster: Cluster, load: Workload) -> list[Outcome]:
    """A closed loop of it."""
    async with Driver(manner(cluster), load.concurrency, time.perf_counter) as driver:
        return await driver.closed(draw(load, 256), load.concurrency, None, lambda _: None)


async def test_every_request_of_the_load_is_asked_and_counted(start_cluster: StartCluster) -> None:
    """Prompts arrive token by token as drawn, answers have the drawn lengths, and nothing failed."""
    cluster = await start_cluster(echoing)
    outcomes = await closed(cluster, LOAD)
    wanted = [conversation.turns[0] for conversation in draw(LOAD, 256)]
    asked = sorted(prompt_of(submit) for submit in cluster.worker.submits)
    assert sorted(turn.tokens for turn in wanted) == asked
    found = figures(outcomes, Objective())
    assert {} == found.errors
    assert sum(turn.output for turn in wanted) == found.output_tokens
    assert sum(len(turn.tokens) for turn in wanted) == found.input_tokens
    assert all(outcome.due <= outcome.sent <= outcome.arrivals[0][0] <= outcome.ended for outcome in outcomes)


async def test_a_closed_loop_never_has_more_in_flight(start_cluster: StartCluster) -> None:
    """As many as there are users, all of them busy: none is answered before all have asked."""
    unanswered, most, all_asked = 0, 0, asyncio.Event()

    async def counting(submit: pb.Submit) -> AsyncIterator[Action]:
        nonlocal unanswered, most
        unanswered += 1
        most = max(most, unanswered)
        if unanswered == LOAD.concurrency:
            all_asked.set()
        await all_asked.wait()
        async for action in echoing(submit):
            assert isinstance(action, Say)
            unanswered -= action.finish == LENGTH
            yield action

    found = figures(await closed(await start_cluster(counting), LOAD), Objective())
    assert {} == found.errors
    assert most == LOAD.concurrency


async def test_turns_send_their_history_again(start_cluster: StartCluster) -> None:
    """The second turn's prompt is the first with its answer, and new tokens."""
    cluster = await start_cluster(echoing)
    load = replace(LOAD, conversations=1, concurrency=1, turns=2, shared_prefix=4)
    await closed(cluster, load)
    first, second = (list(prompt_of(submit)) for submit in cluster.worker.submits)
    (conversation,) = draw(load, 256)
    answer = [100 + i for i in range(conversation.turns[0].output)]
    assert first + answer + list(conversation.turns[1].tokens) == second


async def test_an_open_loop_does_not_wait(start_cluster: StartCluster) -> None:
    """All begin although none is answered yet; time counts from when a request was due."""
    started = asyncio.Event()

    async def waiting(submit: pb.Submit) -> AsyncIterator[Action]:
        if len(cluster.worker.submits) == 5:
            started.set()
        await started.wait()
        async for action in echoing(submit):
            yield action

    cluster = await start_cluster(waiting)
    load = replace(LOAD, conversations=5, concurrency=0, rate=200.0, poisson=False)
    async with Driver(manner(cluster), 5, time.perf_counter) as driver:
        outcomes = await driver.open(draw(load, 256), None, lambda _: None)
    assert [i / 200 for i in range(5)] == pytest.approx(sorted(o.due for o in outcomes))
    assert all(o.sent >= o.due for o in outcomes)
    assert {"OK"} == {o.code for o in outcomes}


async def test_errors_are_counted_by_code(start_cluster: StartCluster) -> None:
    """A refused request is one error of its status, and the others go on; a broken conversation ends there."""

    async def picky(submit: pb.Submit) -> AsyncIterator[Action]:
        if len(prompt_of(submit)) % 2:
            yield Refuse(pb.REFUSAL_REASON_INVALID, "odd")
            return
        async for action in echoing(submit):
            yield action

    cluster = await start_cluster(picky)
    found = figures(await closed(cluster, LOAD), Objective())
    odd = sum(len(conversation.turns[0].tokens) % 2 for conversation in draw(LOAD, 256))
    assert {"INVALID_ARGUMENT": odd} == found.errors
    assert found.answered == LOAD.conversations - odd
    assert "odd" in found.messages["INVALID_ARGUMENT"]


async def test_a_model_that_is_not_served_is_named(start_cluster: StartCluster, start_router: StartRouter) -> None:
    """With what is served; too long a load and a router without workers are told before anything is asked."""
    cluster = await start_cluster(echoing, model_name="right", welcome={"max_context": 64})
    async with Driver(manner(cluster, model="wrong"), 1, time.perf_counter) as driver:
        with pytest.raises(ConfigError, match=r"there is no 'wrong' at .*, but right"):
            await driver.model(10)
    async with Driver(manner(cluster), 1, time.perf_counter) as driver:
        assert (await driver.model(64)).id == "right"
        with pytest.raises(ConfigError, match="up to 65 tokens, right holds 64"):
            await driver.model(65)
    empty = await start_router()
    async with Driver(Manner(empty.listening.address, "", 0.0, 5.0, OwnAccess()), 1, time.perf_counter) as driver:
        with pytest.raises(CallError, match="has no ready worker yet"):
            await driver.model(1)
    assert not cluster.worker.submits


async def test_the_command_writes_record_and_drawing(
    start_cluster: StartCluster, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every figure of the table is in the JSON, beside what was asked; the drawing is well-formed."""
    cluster = await start_cluster(echoing)
    options = replace(
        OPTIONS, address=cluster.front.listening.address, json=tmp_path / "b.json", plot=tmp_path / "b.svg"
    )
    await asyncio.to_thread(online.run, load(None, flags={}, assignments=()), options)
    record = json.loads((tmp_path / "b.json").read_text())
    rows = {row["case"]: row for row in record["rows"]}
    assert {"name", "when", "machine", "settings", "rows"} <= set(record)
    assert rows["requests failed"]["value"] == 0
    assert rows["requests within the objectives"]["value"] == 1.0
    assert rows["time to first token, p99"]["met"] is True
    assert record["settings"]["loop"] == "closed"
    assert record["machine"]["server"] == options.address
    printed = capsys.readouterr().out
    assert all(case in printed for case in rows)
    ElementTree.fromstring((tmp_path / "b.svg").read_text())
    assert len(cluster.worker.submits) == 12 + 2


async def test_a_load_that_always_fails_is_an_error(start_cluster: StartCluster) -> None:
    """The warm-up says what the first request was told."""

    async def refusing(submit: pb.Submit) -> AsyncIterator[Action]:
        yield Refuse(pb.REFUSAL_REASON_INVALID, "never")

    cluster = await start_cluster(refusing)
    options = replace(OPTIONS, address=cluster.front.listening.address)
    with pytest.raises(CallError, match=r"the warm-up failed: INVALID_ARGUMENT: .*never"):
        await asyncio.to_thread(online.run, load(None, flags={}, assignments=()), options)
    with pytest.raises(CallError, match="no request was answered: 12 × INVALID_ARGUMENT"):
        await asyncio.to_thread(online.run, load(None, flags={}, assignments=()), replace(options, warm_up=0))


async def test_time_can_end_a_load(start_cluster: StartCluster) -> None:
    """After the given seconds none begins; what runs is answered."""
    cluster = await start_cluster(echoing)
    clock = iter(float(i) for i in range(10**9))
    async with Driver(manner(cluster), 1, lambda: next(clock)) as driver:
        outcomes = await driver.closed(draw(LOAD, 256), 1, 30.0, lambda _: None)
    assert 0 < len(outcomes) < LOAD.conversations
    assert {"OK"} == {outcome.code for outcome in outcomes}


def test_one_kind_of_loop() -> None:
    """Both at once are refused, neither is a closed loop of eight."""
    with pytest.raises(ConfigError, match="choose one of them"):
        workload(replace(OPTIONS, rate=1.0))
    assert workload(replace(OPTIONS, concurrency=None)).concurrency == 8
    assert workload(replace(OPTIONS, concurrency=None, rate=2.0)).concurrency == 0
    assert workload(replace(OPTIONS, salt=None)).salt != workload(replace(OPTIONS, salt=None)).salt


def test_wrong_lengths_are_named() -> None:
    """With the flag that said them."""
    with pytest.raises(ConfigError, match="--output: 'much' is no length such as 256"):
        workload(replace(OPTIONS, output="much"))


def test_an_error_is_one_line_and_needs_no_torch(tmp_path: Path) -> None:
    """Where neither torch nor Ray is installed, the command runs and says that nobody answers."""
    ran = subprocess.run(
        [sys.executable, "-c", BLOCKED, "bench", "--address", "127.0.0.1:9"], capture_output=True, text=True,
        env={**os.environ, "XDG_STATE_HOME": str(tmp_path)},
    )  # fmt: skip
    lines = ran.stderr.strip().splitlines()
    assert (4, 1) == (ran.returncode, len(lines)), ran.stderr
    assert "shoal: no router answers at 127.0.0.1:9" in lines[0]
