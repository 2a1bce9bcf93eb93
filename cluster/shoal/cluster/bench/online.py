"""`shoal bench`: from options to a run, a table, a record and a drawing."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from shoal.cluster.bench.chart import chart
from shoal.cluster.bench.drive import Driver, Manner
from shoal.cluster.bench.lengths import Lengths, parse_lengths
from shoal.cluster.bench.outcome import Outcome
from shoal.cluster.bench.record import Row, as_json, record, rows_of, write
from shoal.cluster.bench.score import Objective, figures
from shoal.cluster.bench.workload import Workload, draw
from shoal.cluster.commands.chat import router_address
from shoal.cluster.config import Settings
from shoal.cluster.errors import CallError, ConfigError
from shoal.cluster.own_access import OwnAccess
from shoal.proto.v1 import inference_pb2 as pb

_CONTROL = 32  # ids at the end of a small vocabulary that are no text
_PUBLISHED_CONTROL = 199998  # the first such id of the published one
_DEFAULT_USERS = 8


@dataclass(frozen=True, slots=True)
class Options:
    """What the command line said. Objectives are milliseconds."""

    concurrency: int | None
    rate: float | None
    poisson: bool
    requests: int
    seconds: float | None
    prompt: str
    output: str
    shared_prefix: int
    turns: int
    warm_up: int
    slo_ttft: float | None
    slo_itl: float | None
    temperature: float
    seed: int
    salt: int | None
    timeout: float
    model: str
    json: Path | None
    plot: Path | None
    address: str | None


def run(settings: Settings, options: Options) -> None:
    """Ask, score, print. Raises ConfigError for wrong options, CallError when nobody answers anything."""
    load = workload(options)
    objective = Objective(*(None if ms is None else ms / 1e3 for ms in (options.slo_ttft, options.slo_itl)))
    address = router_address(settings, options.address)
    manner = Manner(address, options.model, options.temperature, options.timeout, OwnAccess.of(settings))
    model, outcomes = asyncio.run(_asked(manner, load, options))
    found = figures(outcomes, objective)
    rows = rows_of(found, objective)
    told = {key: value for key, value in asdict(load).items() if key not in ("prompt", "output")}
    told |= {"prompt": options.prompt, "output": options.output, "temperature": options.temperature}
    told |= {"loop": "open" if load.rate else "closed", "seconds": options.seconds, "model": model.id}
    notes = [f"{count} × {code}: {found.messages[code]}" for code, count in found.errors.items()]
    report_rows("bench", rows, told, notes, options.json, {"server": address})
    if options.plot is not None:
        title = f"{model.id}: {_said(load)}, prompts {options.prompt}, answers {options.output}"
        write(options.plot, chart(title, outcomes, objective.ttft, objective.itl))
    if not found.answered:
        raise CallError(f"no request was answered: {'; '.join(notes)}")


def workload(options: Options) -> Workload:
    """What the options ask for. Raises ConfigError naming the flag."""
    if options.concurrency is not None and options.rate is not None:
        raise ConfigError("--concurrency is a closed loop and --rate an open one: choose one of them")
    lengths = {flag: _lengths(flag, text) for flag, text in (("prompt", options.prompt), ("output", options.output))}
    users = 0 if options.rate is not None else options.concurrency or _DEFAULT_USERS
    salt = secrets.randbits(32) if options.salt is None else options.salt
    return Workload(
        prompt=lengths["prompt"], output=lengths["output"], conversations=options.requests, concurrency=users,
        rate=options.rate or 0.0, poisson=options.poisson, turns=options.turns, shared_prefix=options.shared_prefix,
        seed=options.seed, salt=salt,
    )  # fmt: skip


def numbers(flag: str, text: str) -> tuple[int, ...]:
    """Whole numbers of at least 1, comma-separated. Raises ConfigError naming the flag."""
    try:
        values = tuple(int(part) for part in text.split(","))
    except ValueError:
        values = ()
    if not values or min(values) < 1:
        raise ConfigError(f"{flag}: {text!r} is no list of numbers such as 1,4,16")
    return values


def report_rows(
    name: str, rows: Sequence[Row], settings: Mapping[str, Any], notes: Sequence[str], path: Path | None,
    machine: Mapping[str, Any],
) -> None:  # fmt: skip
    """Print a table, and write the record where asked to."""
    console = Console(soft_wrap=True)
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(justify="right", no_wrap=True)
    for row in rows:
        goal = "" if row.goal is None else f"goal {row.goal:g}: {'met' if row.met else 'MISSED'}"
        table.add_row(row.case, f"{row.value:,.6g}", row.unit, goal)
    console.print(table)
    for note in notes:
        console.print(note, markup=False, highlight=False)
    if path is not None:
        write(path, as_json(record(name, rows, settings, notes, **machine)))


async def _asked(manner: Manner, load: Workload, options: Options) -> tuple[pb.Model, list[Outcome]]:
    expected = load.concurrency or 1024
    with Console(stderr=True).status("connecting") as status:
        async with Driver(manner, expected, time.perf_counter) as driver:
            model = await driver.model(load.longest)
            vocabulary = _plain_ids(model.vocab_size)
            if options.warm_up:
                status.update("warming up")
                before = replace(load, conversations=options.warm_up, rate=0.0, salt=load.salt + 1, turns=1)
                warmed = await driver.closed(draw(before, vocabulary), min(options.warm_up, 8), None, lambda _: None)
                _first_must_answer(warmed)
            conversations = draw(load, vocabulary)

            def progress(ended: int) -> None:
                status.update(f"{ended} of {load.conversations * load.turns} requests ended")

            if load.rate:
                return model, await driver.open(conversations, options.seconds, progress)
            return model, await driver.closed(conversations, load.concurrency, options.seconds, progress)


def _first_must_answer(warmed: Sequence[Outcome]) -> None:
    """What fails even in the warm-up is no load to be measured."""
    if all(outcome.code != "OK" for outcome in warmed):
        raise CallError(f"the warm-up failed: {warmed[0].code}: {warmed[0].message}")


def _plain_ids(vocabulary: int) -> int:
    """How many ids from 0 on are text and no control token."""
    return min(_PUBLISHED_CONTROL, vocabulary - _CONTROL) if vocabulary > 2 * _CONTROL else vocabulary


def _lengths(flag: str, text: str) -> Lengths:
    try:
        return parse_lengths(text)
    except ValueError as error:
        raise ConfigError(f"--{flag}: {error}") from error


def _said(load: Workload) -> str:
    if not load.rate:
        return f"{load.concurrency} at once"
    return f"{load.rate:g} a second, {'at random' if load.poisson else 'evenly'}"
