"""A Dockerfile carried out instruction by instruction, each stage a layer over this machine and not over its base."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tests.deploy.chroot import Layer, copy, inside

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
ALLOWED = re.compile(r"(PIP_.*|UV_.*|.*_proxy|SSL_CERT_.*|XDG_CONFIG_DIRS)", re.IGNORECASE)
"""How this machine reaches packages: a builder's business, and in no image."""


@dataclass
class Stage:
    """One FROM and what follows it."""

    layer: Layer
    arguments: dict[str, str]
    environment: dict[str, str] = field(default_factory=lambda: {"PATH": PATH})
    folder: str = "/"
    user: str = "0"
    command: list[str] = field(default_factory=list)
    healthcheck: list[str] = field(default_factory=list)


def instructions(text: str) -> Iterator[tuple[str, str]]:
    """(word, rest) of each, continued lines joined and comments left out."""
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    for line in re.sub(r"\\\n", " ", "\n".join(lines)).splitlines():
        if line.strip():
            word, _, rest = line.strip().partition(" ")
            yield word.upper(), rest.strip()


def build(file: Path, context: Path, folder: Path, arguments: dict[str, str]) -> dict[str, Stage]:
    """Every stage by its name. Raises RuntimeError with the output of a RUN that fails."""
    stages: dict[str, Stage] = {}
    stage: Stage | None = None
    for word, rest in instructions(file.read_text()):
        if word == "FROM":
            name = rest.rpartition(" AS ")[2]
            stage = stages[name] = Stage(Layer(folder / name), {})
            stage.layer.open()
        elif stage is not None:
            carry_out(stage, word, rest, context, stages, arguments)
    return stages


def carry_out(
    stage: Stage, word: str, rest: str, context: Path, stages: dict[str, Stage], arguments: dict[str, str]
) -> None:
    """One instruction. Raises RuntimeError."""
    match word:
        case "ARG":
            name, _, default = rest.partition("=")
            stage.arguments[name] = arguments.get(name, default)
        case "ENV":
            for name, value in (part.split("=", 1) for part in shlex.split(rest)):
                stage.environment[name] = value.replace("$PATH", stage.environment["PATH"])
        case "WORKDIR":
            stage.folder = rest
            (stage.layer.root / rest.lstrip("/")).mkdir(parents=True, exist_ok=True)
        case "USER":
            stage.user = rest
        case "COPY":
            _copy(stage, rest, context, stages)
        case "RUN":
            _run(stage, rest)
        case "CMD":
            stage.command = json.loads(rest)
        case "HEALTHCHECK":
            stage.healthcheck = json.loads(rest[rest.index("CMD ") + 4 :])
        case "EXPOSE":
            pass  # says something to people
        case _:
            raise RuntimeError(f"{word} is not known here")


def _copy(stage: Stage, rest: str, context: Path, stages: dict[str, Stage]) -> None:
    *sources, target = rest.split()
    origin = context
    if sources[0].startswith("--from="):
        origin = stages[sources.pop(0).removeprefix("--from=")].layer.root
    into = stage.layer.root / (target if target.startswith("/") else f"{stage.folder}/{target}").lstrip("/")
    if target.endswith("/") or len(sources) > 1:
        into.mkdir(parents=True, exist_ok=True)
    for source in sources:
        copy(origin / source.lstrip("/"), into)


def _run(stage: Stage, command: str) -> None:
    passed = {name: value for name, value in os.environ.items() if ALLOWED.fullmatch(name)}
    variables = {"HOME": "/root", **passed, **stage.arguments, **stage.environment}
    line = inside(stage.layer.root, stage.user, stage.folder, ["sh", "-c", command], variables)
    done = subprocess.run(line, capture_output=True, text=True, check=False, timeout=600)
    if done.returncode:
        raise RuntimeError(f"RUN {command}: {done.stdout[-1500:]}{done.stderr[-3000:]}")
