"""Thirty-two streams through a whole `shoal serve` while a part of it is killed: Ray's control service, its raylet, the
controller, the router, Redis, a worker. Each part comes back by itself, no stream fails, and each says what it says
undisturbed.

python -m tests.chaos.serve --rounds 8      the long form, as `make chaos` runs it; adds rows to the record `chaos`
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import signal
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from shoal.cluster.checkpoint.make import make_checkpoint
from tests.bench.record import Row, add, load_average
from tests.chaos.listener import Listener
from tests.chaos.streams import partly_heard, spread
from tests.e2e.served import Client, Served, serving

STREAMS = 32
SETTINGS = (
    "worker.kv_tokens=32768",
    "worker.max_batch_size=64",  # who survives alone has a place for every stream
    "router.registry_poll=0.1",
    "router.lease_seconds=2",
)
PARTS = ("control service", "control service and a worker", "controller", "worker", "redis", "router", "raylet")

_COMMANDS = {
    "control service": "gcs/gcs_server ",
    "controller": "ray::ControllerActor",
    "redis": "redis.sock",
    "router": " router --parent",
    "raylet": "raylet/raylet ",
}


@dataclass
class Round:
    """What happened after one kill."""

    part: str
    pauses: list[float] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    different: list[int] = field(default_factory=list)
    whole_again: float = 0.0
    """Seconds from the kill until two workers served, and could be replaced."""

    def __str__(self) -> str:
        median, p99, longest = spread(self.pauses or [0.0])
        return (
            f"{self.part}: failed {len(self.failed)}, not as undisturbed {len(self.different)}, pauses: median "
            f"{median:.3f} s, p99 {p99:.3f} s, max {longest:.3f} s; whole again after {self.whole_again:.1f} s"
        )


def kill(served: Served, part: str, workers: Sequence[int]) -> None:
    """SIGKILL, now. `workers`: their process ids."""
    if part == "control service and a worker":
        kill(served, "control service", workers)
        os.kill(workers[-1], signal.SIGKILL)
    elif part == "worker":
        os.kill(workers[-1], signal.SIGKILL)
    else:
        find(served, part).kill()


def find(served: Served, part: str) -> psutil.Process:
    """The one process of that part."""
    words = _COMMANDS[part]
    if part == "redis":
        pid = int((served.state_dir / "redis" / "redis.pid").read_text())
        return psutil.Process(pid)
    return served.process_named(words)


async def storm(served: Served, part: str, calm: Sequence[Listener], chance: random.Random) -> Round:
    """All streams once more; the part is killed at a random moment, and must be whole again afterwards."""
    run = served.running()
    assert run is not None, served.output()
    client, told = Client(run), Round(part)
    workers = [status.pid for status in client.workers()]
    running = [Listener(one.number, one.tokens) for one in calm]
    tasks = [asyncio.create_task(one.listen([run.router], chance)) for one in running]
    await partly_heard(running, tasks, chance.uniform(0.1, 0.5) * sum(len(one.events) for one in calm))
    moment = time.monotonic()
    await asyncio.to_thread(kill, served, part, workers)
    await asyncio.gather(*tasks)
    told.failed = [f"stream {one.number}: {one.failed}" for one in running if one.failed]
    told.different = [b.number for a, b in zip(calm, running, strict=True) if not b.failed and a.said() != b.said()]
    told.pauses = [pause for one in running if (pause := one.pause_after(moment)) is not None]
    await whole_again(served)
    told.whole_again = time.monotonic() - moment
    client.close()
    return told


async def whole_again(served: Served, within: float = 90.0) -> None:
    """Until every part lives and two workers serve: starting one needs Ray, the controller, and Redis."""
    async with asyncio.timeout(within):
        while not await asyncio.to_thread(is_whole, served):  # noqa: ASYNC110  # it is seen from outside only
            await asyncio.sleep(0.1)


def is_whole(served: Served) -> bool:
    """Whether that is so now."""
    run = served.running()
    if run is None:
        return False
    client = Client(run)
    try:
        for part in _COMMANDS:
            find(served, part)
        return [True, True] == [status.ready for status in client.workers()]
    except Exception:  # a part is missing, or does not answer yet
        return False
    finally:
        client.close()


async def storms(served: Served, parts: Sequence[str], tokens: int, seed: int, streams: int = STREAMS) -> list[Round]:
    """One part after another."""
    chance = random.Random(seed)
    run = served.running()
    assert run is not None, served.output()
    calm = [Listener(number, tokens) for number in range(streams)]
    await asyncio.gather(*(one.listen([run.router], chance) for one in calm))
    assert [] == [(one.number, one.failed) for one in calm if one.failed], "nothing was killed yet"
    rounds = []
    for part in parts:
        rounds.append(await storm(served, part, calm, chance))
        print(rounds[-1], flush=True)
    return rounds


def rows(rounds: Sequence[Round]) -> list[Row]:
    """For the record: per part, over all its rounds."""
    found = []
    for part in dict.fromkeys(round_.part for round_ in rounds):
        mine = [round_ for round_ in rounds if round_.part == part]
        median, p99, longest = spread([pause for round_ in mine for pause in round_.pauses] or [0.0])
        bad = sum(len(round_.failed) + len(round_.different) for round_ in mine)
        what = f"shoal serve, kill -9 of {part}"
        found += [
            Row(f"{what}: failed or different", bad, "streams", goal=0, met=not bad),
            Row(f"{what}: pause, median", round(median, 3), "s"),
            Row(f"{what}: pause, p99", round(p99, 3), "s"),
            Row(f"{what}: pause, maximum", round(longest, 3), "s"),
            Row(f"{what}: whole again", round(max(round_.whole_again for round_ in mine), 2), "s"),
        ]
    return found


def main() -> None:
    """The long form."""
    parser = argparse.ArgumentParser(description="Kill each part of a whole cluster during 32 streams.")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--tokens", type=int, default=160)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--parts", nargs="*", default=list(PARTS))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = make_checkpoint(folder / "tiny", "tiny", seed=1)
        with serving(model, folder / "state", SETTINGS) as served:
            served.wait_until_ready()
            parts = [part for _ in range(options.rounds) for part in options.parts]
            rounds = asyncio.run(storms(served, parts, options.tokens, options.seed))
            stopped = served.shoal("stop")
            assert stopped.returncode == 0, stopped.stderr
            assert served.leaves_nothing(within=60.0), served.left()
    add("chaos", rows(rounds), f"shoal serve: {options.rounds} rounds of {', '.join(options.parts)}; {load_average()}")
    assert not any(round_.failed or round_.different for round_ in rounds), [round_.failed for round_ in rounds]


if __name__ == "__main__":
    main()
