"""The `shoal` command. Only this file is imported for `--help`: each command imports what it needs when it runs, so
that `shoal router`, `chat` and `version` work where neither torch nor ray is installed."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from shoal.cluster.bench.commands import app as bench
from shoal.cluster.checkpoint.commands import app as checkpoint
from shoal.cluster.commands.audit import app as audit
from shoal.cluster.commands.keys import app as keys
from shoal.cluster.errors import ClusterError
from shoal.cluster.probes import app as health

if TYPE_CHECKING:
    from shoal.cluster.config import Settings

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Serve GPT-OSS models from a cluster of expert-parallel workers.",
)
app.add_typer(checkpoint, name="checkpoint")
app.add_typer(bench, name="bench")
app.add_typer(keys, name="keys")
app.add_typer(audit, name="audit")
app.add_typer(health, name="health")

Config = Annotated[Path | None, typer.Option("--config", "-c", help="TOML file with the settings.", show_default=False)]
Set = Annotated[list[str] | None, typer.Option("--set", help="Any setting, as section.key=value.", metavar="KEY=VALUE")]
Insecure = Annotated[bool, typer.Option("--insecure", help="Allow listening off loopback without TLS or credentials.")]
StateDir = Annotated[str | None, typer.Option(help="Where the cluster keeps its data.", show_default=False)]
Address = Annotated[str | None, typer.Option(help="The router, host:port; default: the one that runs here.")]
Through = Annotated[
    str | None,
    typer.Option("--address", help="Ask this router, host:port, with SHOAL_API_KEY; default: the controller itself."),
]


def _settings(config: Path | None, assignments: list[str] | None, **flags: object) -> Settings:
    """`flags` are named section__key."""
    from shoal.cluster.config import load

    return load(
        config, flags={name.replace("__", ".", 1): v for name, v in flags.items()}, assignments=assignments or ()
    )


@app.callback()
def _options(
    debug: Annotated[bool, typer.Option("--debug", help="Show stack traces.", envvar="SHOAL_DEBUG")] = False,
) -> None:
    if debug:
        os.environ["SHOAL_DEBUG"] = "1"


@app.command()
def serve(
    config: Config = None,
    model: Annotated[
        str | None,
        typer.Option(help="Checkpoint directory, or nano: the small one that comes along.", show_default=False),
    ] = None,
    ep_size: Annotated[int | None, typer.Option(help="Workers that share the experts.", show_default="1")] = None,
    groups: Annotated[int | None, typer.Option(help="Copies of the model.", show_default="1")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu or cuda.", show_default="auto")] = None,
    host: Annotated[str | None, typer.Option(help="The router listens here.", show_default="127.0.0.1")] = None,
    port: Annotated[int | None, typer.Option(help="Its gRPC port; 0 takes a free one.", show_default="50051")] = None,
    http_port: Annotated[
        int | None, typer.Option(help="Its HTTP port, OpenAI's API; -1: none.", show_default="8000")
    ] = None,
    ray_address: Annotated[str | None, typer.Option(help="An existing Ray cluster; default: start one.")] = None,
    redis_url: Annotated[str | None, typer.Option(help="An existing Redis; default: start one.")] = None,
    state_dir: StateDir = None,
    insecure: Insecure = False,
    assignments: Set = None,
) -> None:
    """Start a cluster and serve until Ctrl-C; a second Ctrl-C stops at once."""
    from shoal.cluster.commands import serve as command
    from shoal.cluster.nano.shape import nano_directory

    if model == "nano" and not Path(model).exists():
        model = str(nano_directory())
    command.run(
        _settings(
            config, assignments,
            cluster__model=model, cluster__ep_size=ep_size, cluster__groups=groups, worker__device=device,
            router__host=host, router__http_host=host, router__port=port, router__http_port=http_port,
            cluster__ray_address=ray_address, cluster__redis_url=redis_url, cluster__state_dir=state_dir,
            router__insecure=insecure or None,
        )
    )  # fmt: skip


@app.command()
def router(
    config: Config = None,
    model_dir: Annotated[str | None, typer.Option(help="Directory with tokenizer.json.", show_default=False)] = None,
    host: Annotated[str | None, typer.Option(help="Listen here.", show_default="127.0.0.1")] = None,
    port: Annotated[int | None, typer.Option(help="gRPC port; 0 takes a free one.", show_default="50051")] = None,
    http_port: Annotated[
        int | None, typer.Option(help="HTTP port, OpenAI's API; -1: none.", show_default="8000")
    ] = None,
    redis_url: Annotated[str | None, typer.Option(help="Sessions and registry.", show_default=False)] = None,
    insecure: Insecure = False,
    assignments: Set = None,
    parent: Annotated[int | None, typer.Option(hidden=True)] = None,
) -> None:
    """Run one router for workers that run elsewhere. Needs neither torch nor ray."""
    from shoal.cluster.commands import router as command

    flags = {
        "router__model_dir": model_dir, "router__host": host, "router__http_host": host, "router__port": port,
        "router__http_port": http_port, "router__redis_url": redis_url,
        "router__insecure": insecure or None,
    }  # fmt: skip
    command.run(_settings(config, assignments, **flags), parent)


@app.command()
def controller(
    config: Config = None,
    desired: Annotated[Path | None, typer.Option(help="TOML file with ep_size and groups.", show_default=False)] = None,
    keep_trying: Annotated[
        bool, typer.Option("--keep-trying", help="Never give up: what cannot start is tried again, later and later.")
    ] = False,
    assignments: Set = None,
) -> None:
    """Start the controller on a Ray cluster that exists, unless it runs there already, and leave it there."""
    from shoal.cluster.commands import controller as command

    command.run(_settings(config, assignments), desired, keep_trying)


@app.command()
def rebalance(
    group: Annotated[str, typer.Option(help="Only this group.", show_default="all")] = "",
    address: Through = None,
    config: Config = None,
    state_dir: StateDir = None,
    assignments: Set = None,
) -> None:
    """Move experts between workers so that they share the load of late."""
    from shoal.cluster.commands import rebalance as command

    command.run(_settings(config, assignments, cluster__state_dir=state_dir), group, address)


@app.command()
def chaos(
    fault: Annotated[str, typer.Argument(help="kill, stop, delay, drop, corrupt (a worker); redis, disk.")],
    worker: Annotated[str, typer.Argument(help="Its name, such as g0-1.")] = "",
    seconds: Annotated[float, typer.Option(help="For how long, where that means something.", min=0.0)] = 10.0,
    amount: Annotated[float, typer.Option(help="Seconds that `delay` adds to each exchange.", min=0.0)] = 0.1,
    config: Config = None,
    state_dir: StateDir = None,
    assignments: Set = None,
) -> None:
    """Break something on purpose, in a cluster that was started with cluster.chaos = true."""
    from shoal.cluster.commands import chaos as command

    settings = _settings(config, assignments, cluster__state_dir=state_dir)
    command.run(settings, fault, worker, seconds, amount)


@app.command()
def drain(
    worker: Annotated[str | None, typer.Argument(help="Its name, such as g0-1, or its rank.")] = None,
    here: Annotated[bool, typer.Option("--here", help="All workers of this machine or pod.")] = False,
    host: Annotated[str, typer.Option(help="Where those listen.", envvar="SHOAL_POD_IP")] = "127.0.0.1",
    timeout: Annotated[float, typer.Option(help="Longest wait, in seconds.", min=0.0)] = 60.0,
    address: Through = None,
    config: Config = None,
    state_dir: StateDir = None,
) -> None:
    """Empty a worker and put another in its place, or empty those of a machine before it goes away: nothing new is
    sent to them, what runs moves elsewhere."""
    from shoal.cluster.own_access import OwnAccess

    if (worker is None) == (not here):
        raise typer.BadParameter("name a worker, or say --here for those of this machine or pod")
    settings = _settings(config, None, cluster__state_dir=state_dir)
    if worker is not None:
        from shoal.cluster.commands import scale as one

        one.drain(settings, worker, timeout, address)
        return
    from shoal.cluster.commands import drain as command

    command.run(settings.cluster().redis_url, host, timeout, OwnAccess.of(settings))


@app.command()
def redis(
    password_file: Annotated[Path, typer.Option(help="File with the password.", show_default=False)],
    host: Annotated[str, typer.Option(help="Listen here.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Its port.", min=1, max=65535)] = 6379,
    data: Annotated[Path, typer.Option(help="Directory for its append-only file.")] = Path("."),
    max_memory_mib: Annotated[int, typer.Option(help="Most memory for data; nothing is evicted.", min=16)] = 1024,
) -> None:
    """Become a Redis server with a password, for a small installation."""
    from shoal.cluster.commands import redis as command

    command.run(command.Options(host, port, data, password_file, max_memory_mib))


@app.command()
def chat(
    once: Annotated[str | None, typer.Option(help="Say this, print the answer and end.", show_default=False)] = None,
    session: Annotated[str | None, typer.Option(help="Continue this session; default: a new one.")] = None,
    effort: Annotated[Literal["low", "medium", "high"], typer.Option(help="How long to think.")] = "medium",
    max_tokens: Annotated[int | None, typer.Option(help="Longest answer of random weights, in tokens.", min=1)] = None,
    temperature: Annotated[float | None, typer.Option(help="0 is greedy.", min=0.0, max=2.0)] = None,
    seed: Annotated[int | None, typer.Option(help="Makes the answers reproducible.", min=0)] = None,
    timeout: Annotated[float, typer.Option(help="Longest wait for one answer, in seconds.", min=1.0)] = 600.0,
    address: Address = None,
    config: Config = None,
    state_dir: StateDir = None,
) -> None:
    """Talk to the model; the conversation is kept by the server."""
    from shoal.cluster.commands import chat as command

    command.run(
        _settings(config, None, cluster__state_dir=state_dir),
        command.Options(address, session, effort, max_tokens, temperature, seed, timeout),
        once,
    )


@app.command(name="eval")
def evaluate(
    target: Annotated[str, typer.Option(help="The router, host:port.")] = "127.0.0.1:50051",
    size: Annotated[int, typer.Option(help="Questions of each task and effort.", min=1)] = 20,
    seed: Annotated[int, typer.Option(help="Which questions.")] = 0,
    task: Annotated[list[str] | None, typer.Option(help="Only this task; may be repeated.", show_default=False)] = None,
    at_once: Annotated[int, typer.Option(help="Questions in flight.", min=1)] = 8,
    timeout: Annotated[float, typer.Option(help="Longest wait for one answer, in seconds.", min=1.0)] = 120.0,
    twin: Annotated[Path | None, typer.Option(help="Ask transformers too, with this checkpoint.")] = None,
    json: Annotated[Path | None, typer.Option(help="Write the scores to this file.")] = None,
) -> None:
    """Ask shoal-nano held-out questions; print the share of right answers per task and effort."""
    from shoal.cluster.commands import eval as command

    command.run(command.Options(target, size, seed, tuple(task or ()), at_once, timeout, twin, json))


@app.command()
def status(
    as_json: Annotated[bool, typer.Option("--json", help="For machines.")] = False,
    address: Address = None,
    config: Config = None,
    state_dir: StateDir = None,
) -> None:
    """Show the router, the groups and their workers; ends with 0 when all of it serves."""
    from shoal.cluster.commands import status as command

    command.run(_settings(config, None, cluster__state_dir=state_dir), address, as_json)


@app.command()
def scale(
    ep_size: Annotated[int | None, typer.Option(help="Workers per copy of the model.", min=1)] = None,
    groups: Annotated[int | None, typer.Option(help="Copies of the model.", min=1)] = None,
    wait: Annotated[float, typer.Option(help="Longest wait until it is so, in seconds; 0 does not wait.")] = 600.0,
    address: Through = None,
    config: Config = None,
    state_dir: StateDir = None,
    assignments: Set = None,
) -> None:
    """Change how many workers serve, while they serve."""
    from shoal.cluster.commands import scale as command

    command.scale(_settings(config, assignments, cluster__state_dir=state_dir), ep_size, groups, wait, address)


@app.command()
def top(
    every: Annotated[float, typer.Option(help="Seconds between two looks.", min=0.2)] = 2.0,
    rounds: Annotated[int | None, typer.Option(help="End after so many looks.", min=1, show_default=False)] = None,
    address: Address = None,
    metrics: Annotated[str | None, typer.Option(help="The router's metrics, host:port, for tenants.")] = None,
    config: Config = None,
    state_dir: StateDir = None,
) -> None:
    """Watch groups, ranks, experts and tenants live; Ctrl-C ends it."""
    from shoal.cluster.commands import top as command

    command.watch(_settings(config, None, cluster__state_dir=state_dir), address, metrics, every, rounds)


@app.command()
def doctor(
    hashes: Annotated[bool, typer.Option("--hashes", help="Compare every byte of the checkpoint.")] = False,
    model: Annotated[str | None, typer.Option(help="Checkpoint directory.", show_default=False)] = None,
    config: Config = None,
) -> None:
    """Look this machine over: driver, GPU, Ray, Redis, ports, checkpoint, clock; say what to do."""
    from rich.console import Console

    from shoal.cluster.commands import doctor as command

    command.run(_settings(config, None, cluster__model=model), hashes, Console())


@app.command()
def plan(
    model: Annotated[str, typer.Option(help="20b, 120b, or a checkpoint directory.", show_default=False)],
    gpus: Annotated[int, typer.Option(help="How many.", min=1, max=4096)] = 1,
    gpu: Annotated[str, typer.Option(help="a100, h100, h200, b200 or mi300x.")] = "h100",
    gpu_memory: Annotated[str | None, typer.Option(help="Of one, such as 80GB.", show_default="the GPU's own")] = None,
    bandwidth: Annotated[float | None, typer.Option(help="TB/s that you measured.", min=0.001)] = None,
    tflops: Annotated[float | None, typer.Option(help="bf16 TFLOP/s that you measured.", min=0.001)] = None,
    context: Annotated[int, typer.Option(help="Tokens of each sequence, for the speed.")] = 8192,
    batch: Annotated[
        int | None, typer.Option(help="Sequences on all GPUs, for the speed.", min=1, show_default="64 per GPU")
    ] = None,
    step_tokens: Annotated[int, typer.Option(help="worker.max_batch_tokens.", min=1)] = 8192,
    share: Annotated[float, typer.Option(help="Of the memory, to plan with.", min=0.1, max=1.0)] = 0.9,
    spare_slots: Annotated[int, typer.Option(help="worker.expert_spare_slots.", min=0)] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="For machines.")] = False,
) -> None:
    """What fits on which GPUs, how many sequences, and how fast it can be at most. Needs neither torch nor a GPU."""
    from shoal.cluster.commands import plan as command

    command.run(
        command.Options(
            model, gpus, gpu, gpu_memory, bandwidth, tflops, context, batch, step_tokens, share, spare_slots, as_json
        )
    )


@app.command()
def stop(
    now: Annotated[bool, typer.Option("--now", help="Do not wait for running requests.")] = False,
    config: Config = None,
    state_dir: StateDir = None,
) -> None:
    """Stop the cluster that `shoal serve` runs here, and wait until it is gone."""
    from shoal.cluster.commands import stop as command

    command.run(_settings(config, None, cluster__state_dir=state_dir), now)


@app.command()
def demo(
    preset: Annotated[
        str, typer.Option(help="nano, which was trained and knows some things, or random weights: tiny, small.")
    ] = "nano",
    ep_size: Annotated[int, typer.Option(help="Workers that share the experts.", min=1)] = 2,
    max_tokens: Annotated[int, typer.Option(help="Longest answer of random weights, in tokens.", min=1)] = 48,
) -> None:
    """Start a whole cluster with a small model, ask it things, show what ran where, stop it."""
    from shoal.cluster import demo as command

    command.run(preset, ep_size, max_tokens)


@app.command()
def version() -> None:
    """Show versions."""
    from shoal.cluster.commands import version as command

    command.run()


def main() -> None:
    """Entry point: errors of the world are one line and an exit code."""
    try:
        app()
    except ClusterError as error:
        if os.environ.get("SHOAL_DEBUG"):
            raise
        print(f"shoal: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except Exception as error:
        if os.environ.get("SHOAL_DEBUG"):
            raise
        print(f"shoal: internal error: {type(error).__name__}: {error} (shoal --debug shows where)", file=sys.stderr)
        sys.exit(70)


if __name__ == "__main__":
    main()
