"""`shoal bench` and `shoal bench offline`. What is heavy is imported only when a command runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

app = typer.Typer(help="Measure a running server, or an engine alone.")

Config = Annotated[Path | None, typer.Option("--config", "-c", help="TOML file with the settings.", show_default=False)]
Json = Annotated[Path | None, typer.Option("--json", help="Write the figures to this file.", show_default=False)]


@app.callback(invoke_without_command=True)
def online(
    context: typer.Context,
    concurrency: Annotated[
        int | None, typer.Option(help="Closed loop: so many users, each waits for its answer.", min=1, max=16384)
    ] = None,
    rate: Annotated[float | None, typer.Option(help="Open loop: so many begin per second.", min=0.001)] = None,
    arrivals: Annotated[Literal["poisson", "fixed"], typer.Option(help="Of an open loop.")] = "poisson",
    requests: Annotated[int, typer.Option(help="How many in all (conversations, with --turns).", min=1)] = 64,
    seconds: Annotated[float | None, typer.Option(help="Begin none after so long.", min=0.1)] = None,
    prompt: Annotated[str, typer.Option(help="Tokens: 256, uniform:64:512 or normal:256:64.")] = "256",
    output: Annotated[str, typer.Option(help="Tokens, said as for --prompt.")] = "64",
    shared_prefix: Annotated[int, typer.Option(help="Tokens that all prompts begin with, besides.", min=0)] = 0,
    turns: Annotated[int, typer.Option(help="Turns of a conversation; each sends its history again.", min=1)] = 1,
    warm_up: Annotated[int, typer.Option(help="Requests before, that do not count.", min=0)] = 8,
    slo_ttft: Annotated[float | None, typer.Option(help="Objective for goodput: ms to the first token.", min=0)] = None,
    slo_itl: Annotated[
        float | None, typer.Option(help="Objective for goodput: ms between tokens, in 99 % of a request's.", min=0)
    ] = None,
    temperature: Annotated[float, typer.Option(help="0 is greedy.", min=0.0, max=2.0)] = 1.0,
    seed: Annotated[int, typer.Option(help="Lengths and arrivals follow from it.")] = 0,
    salt: Annotated[
        int | None,
        typer.Option(help="Tokens follow from it and the seed; default: new ones, unknown to a prefix cache."),
    ] = None,
    timeout: Annotated[float, typer.Option(help="Longest wait for one answer, in seconds.", min=0.1)] = 600.0,
    model: Annotated[str, typer.Option(help="Which model; default: the one that is served.")] = "",
    json: Json = None,
    plot: Annotated[Path | None, typer.Option(help="Draw the latencies into this SVG file.")] = None,
    address: Annotated[
        str | None, typer.Option(help="The router, host:port; default: the one that runs here.", show_default=False)
    ] = None,
    config: Config = None,
    state_dir: Annotated[str | None, typer.Option(help="Where the cluster keeps its data.", show_default=False)] = None,
) -> None:
    """Ask a running server over gRPC, closed loop (--concurrency) or open (--rate): time to first token, between
    tokens, end to end, throughput, goodput, errors. Needs neither torch nor ray."""
    if context.invoked_subcommand is not None:
        return
    from shoal.cluster.bench import online as command
    from shoal.cluster.config import load

    options = command.Options(
        concurrency, rate, arrivals == "poisson", requests, seconds, prompt, output, shared_prefix, turns, warm_up,
        slo_ttft, slo_itl, temperature, seed, salt, timeout, model, json, plot, address,
    )  # fmt: skip
    command.run(load(config, flags={"cluster.state_dir": state_dir}, assignments=()), options)


@app.command()
def offline(
    model: Annotated[str, typer.Option(help="Checkpoint directory, or with --synthetic a preset.", show_default=False)],
    synthetic: Annotated[bool, typer.Option("--synthetic", help="Make the weights in memory: noise of that shape.")] = (
        False
    ),
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    batch: Annotated[str, typer.Option(help="Sequences at once, comma-separated.")] = "1,4,16",
    prompt: Annotated[str, typer.Option(help="Prompt tokens, comma-separated.")] = "256",
    output: Annotated[int, typer.Option(help="Generated tokens.", min=2)] = 32,
    rounds: Annotated[int, typer.Option(help="Medians are over so many.", min=1)] = 3,
    step_tokens: Annotated[int, typer.Option(help="Most tokens in one step.", min=1)] = 2048,
    threads: Annotated[int, typer.Option(help="CPU threads of the kernels.", min=1)] = 1,
    seed: Annotated[int, typer.Option(help="Of synthetic weights.")] = 0,
    json: Json = None,
) -> None:
    """Run the engine alone in this process: prefill and decode rates of given batches and lengths."""
    from shoal.cluster.bench import offline as engine
    from shoal.cluster.bench.online import numbers, report_rows

    batches, prompts = numbers("--batch", batch), numbers("--prompt", prompt)
    options = engine.Options(
        model, synthetic, device, batches, prompts, output, rounds, step_tokens, threads, seed
    )  # fmt: skip
    rows, machine = engine.run(options, lambda text: typer.echo(text, err=True))
    notes = ["synthetic weights: answers are noise"] if synthetic else []
    settings = {"model": model, "output": output, "rounds": rounds, "step_tokens": step_tokens}
    report_rows("bench-offline", rows, settings, notes, json, machine)
