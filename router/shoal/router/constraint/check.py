"""Refusing what cannot be enforced, before a worker hears of it."""

from __future__ import annotations

import asyncio
import functools
import re

from shoal.proto.v1 import constraint_pb2 as pb
from shoal.router.constraint.place import place_of
from shoal.router.constraint.rules import Language, TurnRules
from shoal.router.errors import FieldError
from shoal.wire.grammars import GrammarError, check_grammar

MOST_TOOLS = 512
LONGEST_RECIPIENT = 128

_RECIPIENT = re.compile(r"[\w.\-]+")


async def check_off_loop(rules: TurnRules) -> tuple[str, ...]:
    """As `check`, without holding up the event loop."""
    return await asyncio.to_thread(check, rules)


def check(rules: TurnRules) -> tuple[str, ...]:
    """Warnings: what was demanded and will not be enforced. Raises FieldError naming the field, the place in it and
    the reason. Compiles every grammar that it has not seen lately, which may take a second."""
    if len(rules.tools) > MOST_TOOLS:
        raise FieldError("tools", f"has {len(rules.tools)}, at most {MOST_TOOLS} are allowed")
    seen: set[str] = set()
    for index, tool in enumerate(rules.tools):
        field = tool.field or f"tools[{index}]"
        if not _RECIPIENT.fullmatch(tool.recipient) or len(tool.recipient) > LONGEST_RECIPIENT:
            raise FieldError(field, f"is named {tool.recipient!r}: a name has letters, digits, '_', '-' and '.' alone")
        if tool.recipient in seen:
            raise FieldError(field, f"is named {tool.recipient!r}, as another tool is")
        seen.add(tool.recipient)
    if rules.named and rules.named not in seen:
        raise FieldError("tool_choice", f"names {rules.named!r}, which is not among the tools")
    if rules.tool_choice == "required" and not rules.tools:
        raise FieldError("tool_choice", "requires a call, and there are no tools")
    if rules.reasoning_budget is not None and rules.reasoning_budget < 0:
        raise FieldError("reasoning_budget", f"is {rules.reasoning_budget}, must be 0 or more")
    warnings: list[str] = []
    for index, tool in enumerate(rules.tools):
        if tool.arguments is not None:
            warnings += _check_language(f"{tool.field or f'tools[{index}]'}.parameters", tool.arguments)
    if rules.answer is not None:
        warnings += _check_language(rules.answer_field, rules.answer)
    return tuple(warnings)


def _check_language(field: str, language: Language) -> list[str]:
    problem, warnings = _verdict(language.kind, language.source)
    if problem:
        raise FieldError(field, problem)
    return [f"{field}: {warning}" for warning in warnings]


@functools.lru_cache(maxsize=512)
def _verdict(kind: pb.GrammarKind.ValueType, source: str) -> tuple[str, tuple[str, ...]]:
    """What is wrong with a grammar ("" if nothing), and warnings."""
    try:
        return "", check_grammar(kind, source)
    except GrammarError as error:
        place = place_of(kind, source, str(error)) if Language(kind, source).is_json else ""
        return f"cannot be enforced{f' at {place}' if place else ''}: {error}", ()
