"""What the model is told of tools: namespaces of functions, in the system message (the model's own tools) or in the
developer message (the caller's functions)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from shoal.router.harmony.typescript import type_of

FUNCTIONS = "functions"
"""The namespace of the caller's own functions."""


@dataclass(frozen=True, slots=True)
class Function:
    """Something that can be called."""

    name: str
    description: str = ""
    parameters: Mapping[str, Any] | None = None
    """JSON Schema of the arguments; None: it takes none."""

    def text(self) -> str:
        """As the model reads it."""
        head = "".join(f"// {line}\n" for line in lines_of(self.description))
        if self.parameters is None:
            return f"{head}type {self.name} = () => any;\n"
        return f"{head}type {self.name} = (_: {type_of(self.parameters)}) => any;\n"


@dataclass(frozen=True, slots=True)
class Namespace:
    """Functions under one name; without any, the name itself is called with text, as python is."""

    name: str
    description: str = ""
    functions: tuple[Function, ...] = ()

    def text(self) -> str:
        """As the model reads it."""
        mark = "// " if self.functions else ""
        lines = [f"## {self.name}\n", *(f"{mark}{line}" for line in lines_of(self.description))]
        if self.functions:
            lines += [
                f"namespace {self.name} {{\n",
                *(function.text() for function in self.functions),
                f"}} // namespace {self.name}",
            ]
        return "\n".join(lines)


def tools_section(namespaces: Iterable[Namespace]) -> str:
    """All namespaces, by name.

    >>> print(tools_section([Namespace("functions", functions=(Function("now", "The time."),))]))
    # Tools
    <BLANKLINE>
    ## functions
    <BLANKLINE>
    namespace functions {
    <BLANKLINE>
    // The time.
    type now = () => any;
    <BLANKLINE>
    } // namespace functions
    """
    return "\n\n".join(["# Tools", *(n.text() for n in sorted(namespaces, key=lambda n: n.name))])


def lines_of(text: str) -> list[str]:
    """Lines without their ends (newline, or carriage return and newline); an end at the very end begins no line."""
    lines = text.split("\n")
    if lines[-1] == "":
        lines.pop()
        return [line.removesuffix("\r") for line in lines]
    return [*(line.removesuffix("\r") for line in lines[:-1]), lines[-1]]
