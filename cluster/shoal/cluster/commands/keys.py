"""`shoal keys create|list|rotate|revoke`. Needs neither torch nor ray."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from shoal.cluster.errors import CallError, ConfigError

if TYPE_CHECKING:
    from shoal.router.access.key import Key
    from shoal.router.access.register import Register

app = typer.Typer(no_args_is_help=True, help="Make, list, renew and revoke API keys and known certificates.")

_T = TypeVar("_T")
_DAY = 86_400.0

Config = Annotated[Path | None, typer.Option("--config", "-c", help="TOML file with the settings.", show_default=False)]
File = Annotated[Path | None, typer.Option(help="Keep keys in this file; default: access.keys_file, else Redis.")]
RedisUrl = Annotated[str | None, typer.Option(help="Keep keys in this Redis; default: the running cluster's.")]
StateDir = Annotated[str | None, typer.Option(help="Where the cluster keeps its data.", show_default=False)]
KeyId = Annotated[str, typer.Argument(help="The key's id, as `shoal keys list` shows it.")]


@app.command()
def create(
    tenant: Annotated[str, typer.Option(help="Whose it is.")],
    role: Annotated[str, typer.Option(help="admin, operator, user, viewer or auditor.")] = "user",
    name: Annotated[str, typer.Option(help="What it is for.")] = "",
    days: Annotated[float, typer.Option(help="How long it counts; 0: for ever.", min=0.0)] = 0.0,
    certificate: Annotated[str, typer.Option(help="Know a certificate instead: uri:…, dns:…, cn:… or sha256:….")] = "",
    requests_per_minute: Annotated[int, typer.Option(help="Besides the tenant's limit; 0: none.", min=0)] = 0,
    tokens_per_minute: Annotated[int, typer.Option(help="Besides the tenant's limit; 0: none.", min=0)] = 0,
    concurrent: Annotated[int, typer.Option(help="Besides the tenant's limit; 0: none.", min=0)] = 0,
    max_context: Annotated[int, typer.Option(help="Most tokens of a prompt; 0: as the tenant.", min=0)] = 0,
    file: File = None,
    redis_url: RedisUrl = None,
    state_dir: StateDir = None,
    config: Config = None,
) -> None:
    """Make a key and print it, this once."""
    limits = {"requests_per_minute": requests_per_minute, "tokens_per_minute": tokens_per_minute}
    limits |= {"concurrent": concurrent, "max_context": max_context}
    key, shown = _with(
        lambda register: register.create(
            tenant, role, name=name, certificate=certificate, seconds=days * _DAY, **limits  # type: ignore[arg-type]  # a role is checked by Key
        ), file, redis_url, state_dir, config,
    )  # fmt: skip
    _tell(key, shown)


@app.command(name="list")
def show(
    as_json: Annotated[bool, typer.Option("--json", help="For machines.")] = False,
    file: File = None,
    redis_url: RedisUrl = None,
    state_dir: StateDir = None,
    config: Config = None,
) -> None:
    """Show the keys, never their secrets."""
    keys = _with(lambda register: register.all(), file, redis_url, state_dir, config)
    if as_json:
        print(json.dumps([{k: v for k, v in asdict(key).items() if k != "digest"} for key in keys], indent=2))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table("key", "tenant", "role", "name", "made", "state")
    for key in keys:
        shown = key.certificate or f"shk_{key.id}_…"
        table.add_row(f"{key.id}  {shown}", key.tenant, key.role, key.name, _day(key.created), _state(key))
    Console().print(table)


@app.command()
def rotate(
    key_id: KeyId,
    grace_days: Annotated[float, typer.Option(help="How long the old one still counts.", min=0.0)] = 1.0,
    file: File = None,
    redis_url: RedisUrl = None,
    state_dir: StateDir = None,
    config: Config = None,
) -> None:
    """Make a new key in place of one, which counts a while longer."""
    key, shown = _with(lambda register: register.rotate(key_id, grace_days * _DAY), file, redis_url, state_dir, config)
    _tell(key, shown)


@app.command()
def revoke(
    key_id: KeyId,
    file: File = None,
    redis_url: RedisUrl = None,
    state_dir: StateDir = None,
    config: Config = None,
) -> None:
    """Let a key count no more: routers refuse it, and end what they serve to it, within access.refresh seconds."""
    key = _with(lambda register: register.revoke(key_id), file, redis_url, state_dir, config)
    print(f"revoked {key.id} of {key.tenant}", file=sys.stderr)


def _tell(key: Key, shown: str) -> None:
    """The secret alone on stdout, for pipes; the rest for people."""
    until = f"until {_day(key.expires)}" if key.expires else "for ever"
    print(f"key {key.id}: tenant {key.tenant}, role {key.role}, counts {until}", file=sys.stderr)
    if shown:
        print("This is the only time it is shown:", file=sys.stderr)
        print(shown)


def _day(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M") if seconds else ""


def _state(key: Key) -> str:
    if key.revoked:
        return f"revoked {_day(key.revoked)}"
    if not key.holds(time.time()):
        return f"expired {_day(key.expires)}"
    return f"until {_day(key.expires)}" if key.expires else "counts"


def _with(
    act: Callable[[Register], Awaitable[_T]],
    file: Path | None,
    redis_url: str | None,
    state_dir: str | None,
    config: Path | None,
) -> _T:
    """Do it where the keys are kept. Raises ConfigError for what was said wrongly, CallError when a store is away."""
    from shoal.router.access.key import BadKeyError
    from shoal.router.access.key_store import FileKeys, KeysAwayError, KeyStore, RedisKeys
    from shoal.router.access.register import NoSuchKeyError, Register
    from shoal.router.sessions.redis_store import connect

    path, url = _place(file, redis_url, state_dir, config)

    async def run() -> _T:
        client = connect(url) if url else None
        store: KeyStore = RedisKeys(client) if client is not None else FileKeys(path)
        try:
            return await act(Register(store, time.time))
        finally:
            if client is not None:
                await client.aclose()

    try:
        return asyncio.run(run())
    except (BadKeyError, NoSuchKeyError) as error:
        raise ConfigError(str(error)) from error
    except KeysAwayError as error:
        raise CallError(str(error)) from error


def _place(file: Path | None, redis_url: str | None, state_dir: str | None, config: Path | None) -> tuple[str, str]:
    """A file, or a Redis URL."""
    from shoal.cluster import runfile
    from shoal.cluster.config import load
    from shoal.cluster.errors import NotRunningError

    if file is not None and redis_url is not None:
        raise ConfigError("keys are kept either in --file or in --redis-url")
    if file is not None:
        return str(file), ""
    if redis_url is not None:
        return "", redis_url
    settings = load(config, flags={"cluster.state_dir": state_dir})
    if path := settings.part("access").keys_file:
        return path, ""
    cluster = settings.cluster()
    if cluster.redis_url:
        return "", cluster.redis_url
    try:
        return "", runfile.read(Path(cluster.state_dir)).redis_url
    except NotRunningError as error:
        raise ConfigError(f"{error}; or say where keys are kept with --file or --redis-url") from error
