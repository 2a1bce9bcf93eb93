"""The seam between a turn and the tools that run on the server: the model's browser and python, MCP servers.

Example:

    class Clock:                                   # a ToolRunner
        namespace = Namespace("clock", functions=(Function("now", "The time."),))
        channel, content_type = "commentary", "json"
        async def run(self, call): return ToolOutput("12:00")

A runner that raises ends the request with that error; a tool that merely failed returns `failed=True` and the model
reads why. The turn cancels a runner that takes too long, so `run` must be safe to cancel.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from shoal.router.constraint.rules import Language, ToolRule
from shoal.router.errors import FieldError
from shoal.router.harmony.namespace import Namespace


@dataclass(frozen=True, slots=True)
class ToolCall:
    """What the model wants."""

    recipient: str
    """Such as "browser.search"; a namespace without functions is called by its own name."""
    content: str
    """What the model wrote to it: JSON for functions, text otherwise. Not checked."""
    call_id: str
    tenant: str
    session_id: str
    """Empty: a conversation that the caller keeps."""


@dataclass(frozen=True, slots=True)
class ToolOutput:
    """What the model is told."""

    content: str
    failed: bool = False


class ToolRunner(Protocol):
    """One namespace of tools."""

    @property
    def namespace(self) -> Namespace:
        """What the model is told of it; its name is what requests call it."""
        ...

    @property
    def channel(self) -> Literal["analysis", "commentary"]:
        """Where it is called: GPT-OSS learnt to call browser and python while it thinks."""
        ...

    @property
    def content_type(self) -> str:
        """How calls are written: "json", or "code" for browser and python."""
        ...

    async def run(self, call: ToolCall) -> ToolOutput:
        """Do it. May be cancelled at any time."""
        ...


class Toolbox:
    """The runners that are configured, by the names of their namespaces."""

    def __init__(self, runners: Iterable[ToolRunner] = ()) -> None:
        self._runners = {runner.namespace.name: runner for runner in runners}

    @property
    def names(self) -> tuple[str, ...]:
        """What requests may name."""
        return tuple(sorted(self._runners))

    def chosen(self, names: Sequence[str]) -> tuple[ToolRunner, ...]:
        """The runners that a request names, each once. Raises FieldError naming the one that is not configured."""
        for index, name in enumerate(names):
            if name not in self._runners:
                known = f"configured are {', '.join(self.names)}" if self._runners else "none is configured"
                raise FieldError(f"server_tools[{index}]", f"names {name!r}, which this server does not run; {known}")
        return tuple(self._runners[name] for name in sorted(set(names)))


def rules_of(runner: ToolRunner) -> list[ToolRule]:
    """What calls of a runner's tools look like."""
    namespace, field = runner.namespace, f"server_tools.{runner.namespace.name}"
    if not namespace.functions:
        return [ToolRule(namespace.name, None, runner.channel, runner.content_type, field, on_server=True)]
    return [
        ToolRule(
            f"{namespace.name}.{function.name}",
            Language.json_schema(dict(function.parameters or {"type": "object"}), strict=False),
            runner.channel,
            runner.content_type,
            field,
            on_server=True,
        )
        for function in namespace.functions
    ]


def serves(runner: ToolRunner, recipient: str) -> bool:
    """Whether a call with this recipient is for the runner.

    "browser" and everything in it is the browser's; what is not known there the runner itself refuses.
    """
    name = runner.namespace.name
    return recipient == name or recipient.startswith(f"{name}.")
