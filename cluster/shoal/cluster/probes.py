"""`shoal health …`: the command lines of probes."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from shoal.cluster.errors import ConfigError

app = typer.Typer(no_args_is_help=True, help="Ask one part whether it is well; ends with 0 when it is.")


@app.command()
def router(
    address: Annotated[str, typer.Option(help="host:port of its gRPC.")] = "127.0.0.1:50051",
    live: Annotated[bool, typer.Option("--live", help="Only whether it answers, not whether it can generate.")] = False,
) -> None:
    """A router: can it generate?"""
    from shoal.cluster.commands import health
    from shoal.cluster.config import load
    from shoal.cluster.own_access import OwnAccess

    health.router(address, live, OwnAccess.of(load()))


@app.command()
def worker(
    ranks: Annotated[int, typer.Option(help="Ranks on this machine or pod.", min=1)] = 1,
    host: Annotated[str, typer.Option(help="Where they listen.", envvar="SHOAL_POD_IP")] = "127.0.0.1",
    config: Annotated[Path | None, typer.Option("--config", "-c", help="TOML file with worker.first_port.")] = None,
) -> None:
    """The workers of this machine or pod: do all of them serve?"""
    from shoal.cluster.commands import health
    from shoal.cluster.config import load
    from shoal.cluster.own_access import OwnAccess

    settings = load(config)
    first_port = settings.worker(model="unused").first_port
    if not first_port:
        raise ConfigError("worker.first_port is not set: without it nobody knows where the workers listen")
    health.workers(host, first_port, ranks, OwnAccess.of(settings))


@app.command()
def redis(
    url: Annotated[str | None, typer.Option(help="Its URL; better in a file.", show_default=False)] = None,
    url_file: Annotated[Path | None, typer.Option(help="File with its URL.", show_default=False)] = None,
) -> None:
    """Redis: does it answer, its data read?"""
    from shoal.cluster.commands import health

    if url_file is not None:
        try:
            url = url_file.read_text().strip()
        except OSError as error:
            raise ConfigError(f"--url-file {url_file}: {error.strerror}") from error
    url = url or os.environ.get("SHOAL_CLUSTER__REDIS_URL")
    if not url:
        raise ConfigError("name the Redis with --url-file, --url or SHOAL_CLUSTER__REDIS_URL")
    health.redis(url)
