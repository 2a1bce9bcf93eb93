"""`shoal demo`: a whole cluster on this machine for two minutes, and what it did."""

from __future__ import annotations

import contextlib
import os
import secrets
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from shoal.cluster import showcase
from shoal.cluster.client import RouterClient, worker_status
from shoal.cluster.config import load
from shoal.cluster.errors import ConfigError, StartError, UnhealthyError
from shoal.cluster.launch import LocalCluster, conduct
from shoal.cluster.nano.shape import NANO, nano_directory
from shoal.cluster.runfile import RunFile
from shoal.cluster.terminal import Turn, show
from shoal.proto.v1 import inference_pb2 as pb
from shoal.proto.v1 import worker_pb2
from shoal.wire import logs

QUESTIONS = ("Who are you?", "What did I just ask you?")


def run(preset: str, ep_size: int, max_tokens: int) -> None:
    """The whole demonstration. Raises ClusterError when any part of it fails."""
    console = Console()
    logs.configure("warning", "auto")
    base = cache_dir()
    trained = preset == NANO.name
    model = nano_directory() if trained else checkpoint(base / f"checkpoint-{preset}", preset, console)
    settings = load(
        environment={},
        flags={
            "cluster.model": str(model),
            "cluster.ep_size": ep_size,
            "cluster.state_dir": str(base / "state"),
            "router.port": 0,
            "router.http_port": 0,
            "router.metrics_port": 0,
            "worker.kv_tokens": 8192,
        },
    )
    with steps(console) as say:
        cluster = LocalCluster(settings, say=say, router_log=base / "router.log")

        def demonstrate(running: RunFile) -> None:
            say("")
            seconds = time.time() - running.started
            console.print(
                f"[green]✓[/] serving on gRPC {running.router} and http://{running.http}/v1 after {seconds:.1f} s"
            )
            if trained:
                answer(running, console)
            else:
                converse(running, max_tokens, console)
            experts(cluster.status()["groups"][0]["workers"], console)

        signalled = conduct(cluster, demonstrate, stopping=lambda _: say("stopping"))
    if signalled is not None:
        sys.exit(128 + signalled)
    console.print("[green]✓[/] everything is stopped")


def answer(running: RunFile, console: Console) -> None:
    """Sums, recall, a tool call and JSON after a schema. Raises UnhealthyError for a wrong answer."""
    client = RouterClient(running.router)
    try:
        showcase.play(client, console, report)
    finally:
        client.close()


def converse(running: RunFile, max_tokens: int, console: Console) -> None:
    """Two turns of one session over gRPC. Raises UnhealthyError when the second turn did not know the first."""
    console.print("[dim]The weights are random, so the answers are noise; everything else is real.[/]")
    client = RouterClient(running.router)
    session_id = f"demo-{secrets.token_hex(4)}"
    try:
        for number, question in enumerate(QUESTIONS):
            console.print(f"\n[bold]› {question}[/]")
            request = pb.ChatRequest(
                messages=[pb.Message(role=pb.ROLE_USER, content=question)],
                session_id=session_id,
                sampling=pb.Sampling(seed=7),
                limits=pb.Limits(max_tokens=max_tokens),
            )
            turn = show(client.chat(request, showcase.TIMEOUT), console, warnings=False)
            report(turn, console)
            stored = client.session(session_id)
            console.print(
                f"[dim]session {session_id} in Redis: {len(stored.items)} items, next turn "
                f"{stored.session.next_turn}[/]"
            )
            if stored.session.next_turn != number + 1:
                raise UnhealthyError(f"turn {number} was not stored: the session is at {stored.session.next_turn}")
    finally:
        client.close()


def report(turn: Turn, console: Console) -> None:
    """The figures of one turn. Raises UnhealthyError when it did not end as it must."""
    if turn.done is None or turn.started is None or turn.first_token is None:
        raise UnhealthyError("the stream ended without its last event")
    usage = turn.done.usage
    console.print(
        f"[dim]{usage.input_tokens} tokens in, {usage.output_tokens} out on {turn.started.worker}; first token after "
        f"{turn.first_token * 1000:.0f} ms, then {turn.tokens_per_second:.0f} tokens/s[/]"
    )
    if turn.warnings:
        odd = ", ".join(f"{count} × {code}" for code, count in Counter(turn.warnings).items())
        console.print(f"[dim]noise breaks the chat format; the router repaired {odd}[/]")


def experts(workers: list[dict[str, Any]], console: Console) -> None:
    """Which experts each rank holds and how many tokens ran through them."""
    table = Table("rank", "worker", "layers", "experts", "expert calls", "busiest", title="\nWhat ran where")
    for worker in workers:
        status = worker_status(worker["address"], timeout=5.0)
        if status is None:
            raise UnhealthyError(f"worker {worker['worker_id']} does not answer any more")
        table.add_row(*expert_row(worker["worker_id"], status))
    console.print(table)


def expert_row(worker_id: str, status: worker_pb2.GetStatusResponse) -> tuple[str, ...]:
    """One line of the table: rank, worker, layers, experts of each layer, tokens through them, the busiest."""
    held = sorted({one.expert for one in status.expert_loads})
    layers = {one.layer for one in status.expert_loads}
    by_expert: Counter[tuple[int, int]] = Counter()
    for one in status.expert_loads:
        by_expert[one.layer, one.expert] += one.tokens
    busiest = ""
    if by_expert:
        (layer, expert), _ = by_expert.most_common(1)[0]
        busiest = f"layer {layer}, expert {expert}"
    total = str(sum(by_expert.values()))
    return str(status.identity.rank), worker_id, str(len(layers)), ranges(held), total, busiest


def ranges(numbers: list[int]) -> str:
    """
    >>> ranges([0, 1, 2, 5, 7, 8])
    '0-2, 5, 7-8'
    """
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)


def checkpoint(path: Path, preset: str, console: Console) -> Path:
    """The demonstration's checkpoint, made once. Raises ConfigError for an unknown preset, StartError otherwise."""
    if (path / "config.json").exists():
        return path
    from shoal.cluster.checkpoint.make import make_checkpoint
    from shoal.workers.checkpoint import CheckpointError

    columns = (TextColumn("making a {task.description} checkpoint"), BarColumn(), DownloadColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task(preset, total=None)
        try:
            made = make_checkpoint(path, preset, progress=lambda n, of: progress.update(task, completed=n, total=of))
        except ValueError as error:
            raise ConfigError(str(error)) from error
        except CheckpointError as error:
            raise StartError(str(error)) from error
    console.print(f"[green]✓[/] {preset} checkpoint with random weights in {made}")
    return made


def cache_dir() -> Path:
    """${XDG_CACHE_HOME:-~/.cache}/shoal/demo."""
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    path = Path(base) / "shoal" / "demo"
    path.mkdir(parents=True, exist_ok=True)
    return path


@contextlib.contextmanager
def steps(console: Console) -> Iterator[Callable[[str], None]]:
    """A spinner beside the current step; the function that is yielded names the next one, "" for none."""
    status = console.status("", spinner="dots")
    try:

        def say(text: str) -> None:
            if not text:
                status.stop()
            elif console.is_terminal:
                status.update(f"{text} …")
                status.start()
            else:
                console.print(text)

        yield say
    finally:
        status.stop()
