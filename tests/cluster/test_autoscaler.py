"""The autoscaler around a controller whose workers feel what a test says."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest

from shoal.cluster.autoscale import AutoscalePolicy, Measured
from shoal.cluster.autoscaler import Autoscaler, measured_by
from shoal.cluster.group_state import Mood, Word
from shoal.cluster.registry_writer import RedisRegistry, RegistryAwayError
from shoal.router.load_teller import LoadTeller
from shoal.router.store.connect import connect
from shoal.router.waiting_line import WaitingLine
from shoal.wire.load import AutoscaleEntry, RouterLoad
from shoal.wire.registry import Desired
from tests.cluster.bench import Bench

POLICY = AutoscalePolicy(enabled=True, most=3, up_after=5.0, down_after=20.0, rest=10.0)


class FakeBoard:
    """Routers say what the test wants them to; away while `away`."""

    def __init__(self) -> None:
        self.load = RouterLoad("r", 10, 0.0, 0.1)
        self.said: list[AutoscaleEntry] = []
        self.away = self.silent = False

    async def loads(self) -> list[RouterLoad]:
        if self.away:
            raise RegistryAwayError("away")
        return [] if self.silent else [self.load]

    async def autoscale(self) -> AutoscaleEntry | None:
        return self.said[-1] if self.said else None

    async def tell_autoscale(self, entry: AutoscaleEntry) -> None:
        self.said.append(entry)


class Driven:
    """A bench with an autoscaler that looks when the test says so, on a clock of its own."""

    def __init__(self, bench: Bench, policy: AutoscalePolicy = POLICY) -> None:
        self.bench, self.board, self.now = bench, FakeBoard(), 0.0
        self.desired = Desired(2, 1)
        self.refusal = ""
        self.scaler = Autoscaler(
            policy, bench.controller, self.board, lambda: self.desired, self.want, clock=lambda: self.now
        )

    async def want(self, wanted: Desired) -> str:
        """As the admin API does."""
        if not self.refusal:
            self.desired = wanted
            await self.bench.controller.scale(wanted.ep_size, wanted.groups, self.bench.policy, 0.0)
        return self.refusal

    async def look(self, seconds: int) -> list[int]:
        """Once a second; groups wanted after each look."""
        seen = []
        for _ in range(seconds):
            self.now += 1.0
            seen.append((await self.scaler.look()).groups)
        return seen

    async def until_settled(self) -> None:
        """As many groups serve as are wanted."""
        names = [f"g{number}" for number in range(self.desired.groups)]
        await self.bench.until(lambda: all(self.bench.phase(name) == "ready" for name in names))
        await self.bench.until(lambda: len(self.bench.controller.words) >= 2 * len(names))


@asynccontextmanager
async def driven(policy: AutoscalePolicy = POLICY) -> AsyncIterator[Driven]:
    """One group that serves."""
    bench = Bench()
    async with bench.running():
        made = Driven(bench, policy)
        await made.until_settled()
        yield made


async def test_load_brings_a_group_and_its_end_takes_it_away() -> None:
    """Through the same call as `shoal scale`; what was decided last is told with its reason."""
    async with driven() as d:
        assert [1] * 5 == await d.look(5)
        d.board.load = replace(d.board.load, first_token_seconds=3.0)
        assert [1, 1, 1, 1, 1, 2] == await d.look(6)
        await d.until_settled()
        said = d.board.said[-1]
        assert (1, 2, "first token at 1.5 of its target, above it for 5 s") == (said.before, said.after, said.why)
        d.board.load = replace(d.board.load, first_token_seconds=0.1)
        assert [2] * 20 + [1] == await d.look(21)
        await d.bench.until(lambda: d.bench.phase("g1") == "stopped")
        assert "one group fewer was enough for 20 s" == d.board.said[-1].why


@pytest.mark.parametrize("felt", [(0.95, 0.0), (0.1, 2.0)])
async def test_what_workers_feel_counts(felt: tuple[float, float]) -> None:
    """Full of KV, or with a long queue, although clients of the moment are well."""
    async with driven() as d:
        d.bench.fleet.felt = dict.fromkeys(("g0-0", "g0-1"), felt)
        await d.bench.until(lambda: all(w.kv_used == felt[0] for w in d.bench.controller.words.values()))
        assert 2 == (await d.look(6))[-1]


async def test_nothing_is_decided_in_the_middle_of_a_repair() -> None:
    """What is measured then is the repair itself; patience begins anew after it."""
    async with driven() as d:
        d.board.load = replace(d.board.load, queue_seconds=9.0)
        await d.look(4)
        d.bench.fleet.hold.clear()  # epochs cannot be entered
        d.bench.fleet.die("g0-1")
        await d.bench.until(lambda: d.bench.phase("g0") == "changing")
        assert {1} == set(await d.look(30))
        assert "group g0 changes" == d.board.said[-1].doing
        d.bench.fleet.hold.set()
        await d.bench.until_ready(["g0-0", "g0-2"])
        await d.bench.until(lambda: "g0-2" in d.bench.controller.words)
        assert [1] * 5 + [2] == await d.look(6)


async def test_a_group_that_could_not_be_had_is_given_up() -> None:
    """There was no place: it is taken back, the rest is kept, then it is tried again for as long as the load lasts."""
    async with driven() as d:
        d.bench.fleet.broken["hire g1-0"] = "no place"
        d.board.load = replace(d.board.load, queue_seconds=0.6)
        await d.look(6)
        await d.bench.until(lambda: d.bench.phase("g1") == "failed")
        assert [1] == await d.look(1)
        assert "group g1 could not be had: g1-0: no place" == d.board.said[-1].why
        await d.bench.until(lambda: d.bench.phase("g1") == "stopped")
        assert [1] * 9 + [2] == await d.look(10)
        await d.until_settled()


async def test_nobody_decides_blindly() -> None:
    """While no router says what clients feel, or Redis is away, groups stay; an idle cluster is not guessed."""
    async with driven(replace(POLICY, down_after=2.0, rest=0.0)) as d:
        await d.want(Desired(2, 2))
        await d.until_settled()
        d.board.silent = True
        assert {2} == set(await d.look(30))
        assert "no router says its load" == d.board.said[-1].doing
        d.board.silent, d.board.away = False, True
        with pytest.raises(RegistryAwayError):
            await d.look(1)
        d.board.away = False
        assert 1 == (await d.look(3))[-1]


async def test_a_size_that_is_refused_is_told_and_tried_again_later() -> None:
    """With the patience in between."""
    async with driven() as d:
        d.refusal = "groups must be 1 to 64, not 65"
        d.board.load = replace(d.board.load, queue_seconds=0.6)
        assert {1} == set(await d.look(6))
        assert (d.refusal, 0) == (d.board.said[-1].doing, d.board.said[-1].before)
        await d.look(1)
        assert "" == d.board.said[-1].doing


async def test_a_later_controller_remembers_what_was_decided(monkeypatch: pytest.MonkeyPatch) -> None:
    """The last decision is in Redis, and `run` looks on although a look fails."""
    monkeypatch.setattr("shoal.cluster.autoscaler.PERIOD", 0.01)
    async with driven() as d:
        d.board.said.append(AutoscaleEntry(1, 1, 4, 0.0, 0.0, 0.0, "", before=2, after=1, why="because", when=7.0))
        d.board.away = True
        running = asyncio.create_task(d.scaler.run())
        await asyncio.sleep(0.05)
        d.board.away = False
        await d.bench.until(lambda: len(d.board.said) > 2)
        running.cancel()
        said = d.board.said[-1]
        assert (2, 1, "because", 7.0, 3) == (said.before, said.after, said.why, said.when, said.most)


def test_few_requests_say_nothing_of_the_time_to_first_token() -> None:
    """One long prompt would not come sooner; routers count by their requests, queues by the worst."""
    words = [Word("a", 1, Mood.SERVING, True, kv_used=0.2, queue_seconds=0.3), Word("b", 1, Mood.SERVING, True)]
    few = [RouterLoad("r", 3, 0.0, 9.0)]
    assert Measured(0.3, 0.1, 0.0) == measured_by(words, few)
    assert Measured(0.4, 0.1, 3.0) == measured_by(words, [*few, RouterLoad("s", 6, 0.4, 0.0)])
    assert Measured() == measured_by([], [])


async def test_what_routers_say_is_read_once(redis_url: str) -> None:
    """Through Redis; what was said before the first look is too old, what is not readable is left out, and the stream
    stays bounded whoever reads."""
    now = 10.0
    room, first = WaitingLine(lambda: now), WaitingLine(lambda: now)
    registry, teller, client = RedisRegistry(redis_url), LoadTeller("r1", room, first), connect(redis_url)

    async def tell() -> None:
        telling = asyncio.create_task(teller.run(client))
        await asyncio.sleep(0.1)
        telling.cancel()

    await tell()
    assert [] == await registry.loads()
    await client.xadd("shoal:loads", {b"load": b"?"})
    with first.joined() as served:
        now = 13.0
        served()
    with room.joined():
        now = 14.0
        await tell()
        assert [RouterLoad("r1", 1, 1.0, 3.0)] == await registry.loads()
    assert [] == await registry.loads()
    entry = AutoscaleEntry(1, 1, 4, 0.0, 0.0, 0.0, "begins")
    await registry.tell_autoscale(entry)
    assert entry == await registry.autoscale()
    await registry.forget_autoscale()
    assert None is await registry.autoscale()
    await client.aclose()
    await registry.close()
