"""`shoal checkpoint make|inspect|verify|golden`. What needs torch is imported only when a command runs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn
from rich.table import Column, Table

if TYPE_CHECKING:
    from collections.abc import Callable

    from shoal.cluster.checkpoint.inspect import Summary
    from shoal.cluster.checkpoint.presets import Preset

app = typer.Typer(no_args_is_help=True, help="Make, inspect and verify checkpoint directories.")
WRONG = 2  # exit code: the input is at fault
NOISE = "; its weights are synthetic: answers are noise"

Directory = Annotated[Path, typer.Argument(help="Checkpoint directory, or its original/.", show_default=False)]


@app.command()
def make(
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Directory to write; must not exist or be empty.")
    ] = None,
    preset: Annotated[str, typer.Option(help="tiny, small, 20b or 120b.")] = "tiny",
    seed: Annotated[int, typer.Option(help="The same seed gives the same weights.")] = 0,
    layout: Annotated[Literal["hf", "original"], typer.Option(help="Hugging Face's or OpenAI's.")] = "hf",
    synthetic: Annotated[
        bool, typer.Option("--synthetic", help="Cheap noise, as fast as a disk takes it: for measuring at full size.")
    ] = False,
    in_memory: Annotated[
        bool,
        typer.Option("--in-memory", help="Write nothing: build them on the device and say what came."),
    ] = False,
    device: Annotated[str, typer.Option(help="With --in-memory: auto, cpu or cuda.")] = "auto",
    ep_size: Annotated[int, typer.Option(help="With --in-memory: ranks that share the experts.", min=1)] = 1,
    rank: Annotated[int, typer.Option(help="With --in-memory: whose experts.", min=0)] = 0,
) -> None:
    """Write a checkpoint of seeded random weights in the exact published layout."""
    from shoal.cluster.checkpoint.presets import find_preset

    try:
        shape = find_preset(preset)
    except ValueError as error:
        raise _wrong(str(error)) from None
    if in_memory:
        if not synthetic or out is not None:
            raise _wrong("--in-memory builds synthetic weights and writes nothing: say --synthetic, and no --out")
        if rank >= ep_size or ep_size > shape.num_experts:
            raise _wrong(f"--rank {rank} is not one of {ep_size} that share {shape.num_experts} experts")
        _build_in_memory(shape, seed, device, ep_size, rank)
        return
    if out is None:
        raise _wrong("--out names the directory to write")
    from shoal.cluster.checkpoint.make import make_checkpoint

    with _one_line_errors(), _bar("writing") as progress:
        made = make_checkpoint(out, shape, seed, layout, progress=progress, synthetic=synthetic)
    typer.echo(f"made {preset} in {made}{NOISE if synthetic else ''}")


def _build_in_memory(shape: Preset, seed: int, device: str, ep_size: int, rank: int) -> None:
    from shoal.cluster.checkpoint.in_memory import build
    from shoal.kernels.target import BackendError
    from shoal.workers.errors import NoRoomError

    try:
        built = build(shape, seed, device, ep_size, rank)
    except (BackendError, NoRoomError) as error:
        raise _wrong(str(error)) from None
    typer.echo(
        f"built {shape.name} on {built.device} as rank {rank} of {ep_size}: {_size(built.dense_bytes)} dense, "
        f"{_size(built.expert_bytes)} of {built.experts} experts per layer, in {built.seconds:.1f} s{NOISE}"
    )


def _wrong(message: str) -> typer.Exit:
    """One line on stderr, and the exit to raise."""
    typer.echo(f"error: {message}", err=True)
    return typer.Exit(WRONG)


@app.command()
def inspect(path: Directory) -> None:
    """Show shapes, dtypes, sizes and what each worker of a group would read."""
    from shoal.cluster.checkpoint.inspect import summarise
    from shoal.workers.checkpoint import open_checkpoint

    with _one_line_errors(), open_checkpoint(path) as checkpoint:
        summary = summarise(checkpoint)
    _print_summary(summary, Console())


@app.command()
def golden(
    path: Directory,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Default: in the checkpoint directory.")] = None,
) -> None:
    """Compute, slowly and by other code, logits that workers must reproduce before they serve."""
    from shoal.cluster.checkpoint.golden import make_golden
    from shoal.workers.checkpoint import open_checkpoint
    from shoal.workers.model.golden import NAME

    with _one_line_errors(), open_checkpoint(path) as checkpoint, _bar("layers") as progress:
        made = make_golden(checkpoint, progress)
        target = out or checkpoint.path / NAME
        made.save(target, checkpoint.fingerprint)
    typer.echo(f"wrote {target}: logits after {len(made.tokens)} tokens")


@app.command()
def verify(
    path: Directory,
    write_manifest: Annotated[bool, typer.Option("--write-manifest", help="Record the hashes in SHA256SUMS.")] = False,
) -> None:
    """Read everything: headers, shapes, NaN scales, non-finite weights, the hashes of SHA256SUMS where it exists."""
    from shoal.cluster.checkpoint import manifest
    from shoal.cluster.checkpoint.verify import verify_checkpoint

    with _one_line_errors():
        with _bar("reading") as progress:
            report = verify_checkpoint(path, progress, compare=not write_manifest)
        for name, digest in report.hashes.items():
            typer.echo(f"{digest}  {name}")
        for problem in report.problems:
            typer.echo(f"error: {problem}", err=True)
        if report.problems:
            raise typer.Exit(WRONG)
        if write_manifest:
            typer.echo(f"wrote {manifest.write(path, report.hashes)}")
    compared = ", hashes as recorded" if report.had_manifest else ""
    typer.echo(f"good: {_size(report.nbytes)}{compared}, fingerprint {report.fingerprint}")


@contextmanager
def _one_line_errors() -> Iterator[None]:
    """What is wrong with the input, in one line on stderr and exit code 2; our own mistakes keep their traceback."""
    from shoal.workers.checkpoint import CheckpointError

    try:
        yield
    except CheckpointError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(WRONG) from None


@contextmanager
def _bar(what: str) -> Iterator[Callable[[int, int], None]]:
    columns = (TextColumn(what), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bars:
        task = bars.add_task(what, total=None)
        yield lambda done, total: bars.update(task, completed=done, total=total)


def _print_summary(summary: Summary, console: Console) -> None:
    config = summary.config
    facts = Table("", Column("", overflow="fold"), show_header=False, box=None)
    windows = sorted({window for window in config.layer_windows if window is not None})
    for key, value in (
        ("path", summary.path),
        ("layout", summary.layout),
        ("fingerprint", summary.fingerprint),
        ("tokenizer", summary.tokenizer or "none"),
        ("layers", f"{config.num_layers}, sliding window {windows or 'none'}"),
        ("experts", f"{config.num_experts}, {config.experts_per_token} per token"),
        ("hidden, intermediate", f"{config.hidden_size}, {config.intermediate_size}"),
        ("heads", f"{config.num_heads} query, {config.num_kv_heads} key/value, of {config.head_dim}"),
        ("vocabulary", config.vocab_size),
        ("context", config.max_context),
        ("end of turn", ", ".join(map(str, config.eos_token_ids))),
        ("parameters", f"{summary.parameters:,}"),
        ("bytes", f"{_size(summary.dense_bytes)} dense, {_size(summary.expert_bytes)} experts"),
    ):
        facts.add_row(f"[bold]{key}", escape(str(value)))
    console.print(facts)
    tensors = Table(Column("tensor", overflow="fold"), "count", "dtype", "shape", "bytes", box=None)
    for kind in summary.kinds:
        shape = "×".join(map(str, kind.shape))
        tensors.add_row(kind.name.removeprefix("model."), str(kind.count), kind.dtype, shape, _size(kind.nbytes))
    console.print(tensors)
    shares = Table("workers", "experts each", "dense", "experts", "read by one worker", box=None)
    for share in summary.shares:
        whole = share.dense_bytes + share.expert_bytes
        sizes = map(_size, (share.dense_bytes, share.expert_bytes, whole))
        shares.add_row(str(share.ep_size), str(share.experts), *sizes)
    console.print(shares)
    for file, size in summary.files:
        console.print(f"{_size(size):>12}  {file.name}", highlight=False, markup=False)


def _size(count: int) -> str:
    value = float(count)
    for unit in ("B", "KiB", "MiB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.2f} GiB"
