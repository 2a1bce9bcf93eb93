"""`shoal audit verify|export`. Needs neither torch nor ray."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from shoal.cluster.errors import ConfigError, UnhealthyError

if TYPE_CHECKING:
    from shoal.router.audit.trail import Sealer

app = typer.Typer(no_args_is_help=True, help="Check and read audit trails.")

Paths = Annotated[list[Path], typer.Argument(help="Files, or directories of them.", show_default=False)]
KeyFile = Annotated[Path | None, typer.Option("--key", help="audit.key_file, where the trail was written with one.")]


@app.command()
def verify(paths: Paths, key: KeyFile = None) -> None:
    """Check that nothing was changed, taken out, moved or cut off; ends with 5 when something was."""
    from shoal.router.audit.chain import verify as check
    from shoal.router.audit.file import AuditFileError, read_head

    secret, problems = _secret(key), 0
    for path in _files(paths):
        try:
            head = read_head(path)
            with path.open("rb") as lines:
                end, found = check(lines, secret, head)
        except (OSError, AuditFileError) as error:
            raise ConfigError(str(error)) from error
        kept = "" if head is not None else "; no head beside it, so a cut at its end would not show"
        print(f"{path}: {end.number} records, {len(found)} problems{kept}")
        for problem in found[:20]:
            print(f"  line {problem.line}: {problem.what}")
        problems += len(found)
    if problems:
        raise UnhealthyError(f"{problems} problems: the trail is not what was written")


@app.command()
def export(
    paths: Paths,
    tenant: Annotated[str | None, typer.Option(help="Only this tenant's.")] = None,
    since: Annotated[str, typer.Option(help="Only from this time on, as 2026-01-31T00:00.")] = "",
    until: Annotated[str, typer.Option(help="Only before this time.")] = "",
    encryption_key: Annotated[Path | None, typer.Option(help="Show what is encrypted, with this file.")] = None,
) -> None:
    """Print records as JSON lines."""
    from shoal.router.audit.trail import Sealer

    secret = _secret(encryption_key)
    if encryption_key is not None and len(secret) != 32:
        raise ConfigError(f"--encryption-key: {encryption_key} must hold 32 bytes, not {len(secret)}")
    sealer = Sealer(secret) if secret else None
    for path in _files(paths):
        for record in _records(path):
            at = str(record.get("at", ""))
            if (tenant is None or record.get("tenant") == tenant) and since <= at and (not until or at < until):
                if sealer is not None:
                    _unseal(record, sealer)
                print(json.dumps(record, ensure_ascii=False, sort_keys=True))


def _unseal(record: dict[str, Any], sealer: Sealer) -> None:
    from cryptography.exceptions import InvalidTag

    uses = record.get("tools")
    for holder in (record, *(use for use in (uses if isinstance(uses, list) else ()) if isinstance(use, dict))):
        for part in ("prompt", "answer", "arguments", "result"):
            kept = holder.get(part)
            if isinstance(kept, dict) and "sealed" in kept:
                try:
                    holder[part] = {"text": sealer.open(str(kept["sealed"]), str(record.get("request", "")))}
                except (InvalidTag, ValueError):
                    number = record.get("number")
                    print(f"shoal: record {number}: {part} is encrypted with another key", file=sys.stderr)


def _records(path: Path) -> Iterator[dict[str, Any]]:
    try:
        with path.open("rb") as lines:
            for number, line in enumerate(lines, 1):
                try:
                    record = json.loads(line)
                except ValueError:
                    print(f"shoal: {path}, line {number}: this is no record", file=sys.stderr)
                    continue
                if isinstance(record, dict):
                    yield record
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from error


def _files(paths: list[Path]) -> list[Path]:
    found = [file for path in paths for file in (sorted(path.glob("*.jsonl")) if path.is_dir() else [path])]
    if not found:
        raise ConfigError(f"there is no trail in {', '.join(map(str, paths))}")
    return found


def _secret(path: Path | None) -> bytes:
    from shoal.router.audit.assemble import secret_of
    from shoal.router.errors import StartError

    if path is None:
        return b""
    try:
        return secret_of("key", str(path))
    except StartError as error:
        raise ConfigError(str(error)) from error
