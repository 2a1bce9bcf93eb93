"""`shoal eval`."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console
from rich.table import Table

from shoal.cluster.errors import ConfigError
from shoal.cluster.nano.answer import Answer
from shoal.cluster.nano.evaluate import Scores, ask_all, scores
from shoal.cluster.nano.example import EFFORTS, Example
from shoal.cluster.nano.mixture import EXAMS
from shoal.cluster.nano.questions import questions
from shoal.cluster.nano.score import Score


@dataclass(frozen=True, slots=True)
class Options:
    """What the command line said."""

    target: str
    size: int
    seed: int
    tasks: tuple[str, ...]
    at_once: int
    timeout: float
    twin: Path | None
    json: Path | None


def run(options: Options) -> None:
    """Ask, mark, print. Raises CallError when the cluster does not answer, ConfigError for a task there is not."""
    if unknown := [task for task in options.tasks if task not in EXAMS]:
        raise ConfigError(f"there is no task {unknown[0]!r}; there are {', '.join(EXAMS)}")
    examples = questions(options.size, options.seed, options.tasks)
    date = datetime.now(UTC).date().isoformat()
    console = Console()
    with console.status("asking") as status:
        answers = ask_all(
            options.target, examples, options.at_once, options.timeout,
            lambda done, total: status.update(f"asked {done} of {total}"),
        )  # fmt: skip
    found = scores(examples, answers)
    console.print(_table(found))
    twin = _twin(options, examples, date, console) if options.twin is not None else None
    if twin is not None:
        same = sum(a == b for a, b in zip(answers, twin, strict=True))
        theirs = scores(examples, twin)
        console.print(f"transformers gave the same answer to {same} of {len(examples)} questions")
        console.print(f"right: cluster {_total(found).right}, transformers {_total(theirs).right}")
    if options.json is not None:
        options.json.write_text(json.dumps(_record(options, found, twin, examples), indent=1) + "\n", encoding="utf-8")


def _twin(options: Options, examples: list[Example], date: str, console: Console) -> list[Answer]:
    from shoal.cluster.nano.twin import Twin

    assert options.twin is not None
    with console.status("asking transformers") as status:
        return Twin(options.twin).ask_all(
            examples, date, lambda done, total: status.update(f"transformers: {done} of {total}")
        )


def _total(found: Scores) -> Score:
    first, *rest = found.values()
    return sum(rest, start=first)


def _table(found: Scores) -> Table:
    """A row per task: the share of right answers at each effort with its 95 % interval."""
    table = Table(title="held-out questions answered rightly, 95 % intervals")
    table.add_column("task")
    for effort in EFFORTS:
        table.add_column(effort, justify="right")
    for task in dict.fromkeys(task for task, _ in found):
        table.add_row(task, *(_cell(found.get((task, effort))) for effort in EFFORTS))
    return table


def _cell(score: Score | None) -> str:
    if score is None:
        return ""
    low, high = score.bounds
    return f"{score.share:.1%} ({low:.1%} to {high:.1%})"


def _record(options: Options, found: Scores, twin: list[Answer] | None, examples: list[Example]) -> dict[str, object]:
    """What `--json` writes: per task and effort, right, asked and the interval; transformers' beside it."""
    theirs = scores(examples, twin) if twin is not None else {}
    rows = []
    for key, score in found.items():
        row: dict[str, object] = {
            "task": key[0], "effort": key[1], "right": score.right, "asked": score.asked,
            "interval": [round(bound, 4) for bound in score.bounds],
        }  # fmt: skip
        if key in theirs:
            row["transformers_right"] = theirs[key].right
        rows.append(row)
    return {"target": options.target, "size": options.size, "seed": options.seed, "rows": rows}
