"""What a client demands of a turn."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from shoal.proto.v1 import constraint_pb2 as pb

ToolChoice = Literal["none", "auto", "required"]


@dataclass(frozen=True, slots=True)
class Language:
    """The texts that a message may consist of."""

    kind: pb.GrammarKind.ValueType
    source: str

    @classmethod
    def json_schema(cls, schema: Mapping[str, Any] | bool, *, strict: bool = True) -> Language:
        """JSON values that the schema describes. Not strict: keywords that cannot be enforced are ignored."""
        kind = pb.GRAMMAR_KIND_JSON_SCHEMA if strict else pb.GRAMMAR_KIND_JSON_SCHEMA_LENIENT
        return cls(kind, json.dumps(schema, ensure_ascii=False))

    @classmethod
    def json_object(cls) -> Language:
        """Any JSON object."""
        return cls.json_schema({"type": "object"})

    @classmethod
    def regex(cls, expression: str) -> Language:
        """Texts that the whole expression matches."""
        return cls(pb.GRAMMAR_KIND_REGEX, expression)

    @classmethod
    def lark(cls, grammar: str) -> Language:
        """Texts of a context-free grammar."""
        return cls(pb.GRAMMAR_KIND_LARK, grammar)

    @property
    def is_json(self) -> bool:
        return self.kind in (pb.GRAMMAR_KIND_JSON_SCHEMA, pb.GRAMMAR_KIND_JSON_SCHEMA_LENIENT)


@dataclass(frozen=True, slots=True)
class ToolRule:
    """A tool that the model may call."""

    recipient: str
    """Whom a call is addressed to, such as "functions.lookup"."""
    arguments: Language | None = None
    """What a call may say; None: anything."""
    channel: Literal["commentary", "analysis"] = "commentary"
    """Where calls are made: functions on commentary, the model's built-in tools on analysis."""
    content_type: str = "json"
    """Written after `<|constrain|>`; for the built-in tools "code", as a word of the header."""
    field: str = ""
    """Where the client named it, for messages."""
    on_server: bool = False
    """Whether the server answers calls of it, so that the model waits for the result in the middle of its turn."""


@dataclass(frozen=True, slots=True)
class TurnRules:
    """Everything that is demanded of one turn. The default demands well-formed messages and nothing else."""

    tools: tuple[ToolRule, ...] = ()
    tool_choice: ToolChoice = "auto"
    named: str = ""
    """Recipient of the one tool that must be called; overrules `tool_choice`."""
    answer: Language | None = None
    """What the answer on the final channel may say; None: anything."""
    reasoning_budget: int | None = None
    """Most tokens of reasoning; 0: none at all."""
    parallel: bool = False
    """Whether the model is asked for more calls after one, before it has seen a result."""
    preambles: bool = True
    """Whether words for the user may precede a call (on commentary, without a recipient)."""
    answer_field: str = "response_format"
    """Where the client gave `answer`, for messages."""

    @property
    def callable(self) -> tuple[ToolRule, ...]:
        """The tools that may be called in this turn."""
        if self.named:
            return tuple(tool for tool in self.tools if tool.recipient == self.named)
        return () if self.tool_choice == "none" else self.tools

    @property
    def repeatable(self) -> tuple[ToolRule, ...]:
        """The tools after whose calls the model is asked for more. A tool that was named is called once."""
        return tuple(t for t in self.callable if not t.on_server) if self.parallel and not self.named else ()

    @property
    def must_call(self) -> bool:
        """Whether the turn has to end in a call."""
        return bool(self.named) or self.tool_choice == "required"
