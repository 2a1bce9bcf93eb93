"""The automaton of one turn of the model, which begins right after `<|start|>assistant`.

    HEADER ─▶ ANALYSIS ── <|end|><|start|>assistant ─▶ HEADER        (any text, within the reasoning budget)
           ─▶ PREAMBLE ── <|end|><|start|>assistant ─▶ HEADER        (any text for the user)
           ─▶ FINAL    ── <|return|> ─▶ END                          (the answer's language)
           ─▶ CALL     ── <|call|>   ─▶ END                          (one such state per tool, with its arguments)

With parallel calls the model is asked, after a call of the caller's functions, what it would say next if it had not to
wait. Another call is taken; whatever else it begins ends the turn, and is left out.

    CALL ── <|call|> ─▶ MORE ── <|start|>assistant, a call's header ─▶ CALL
                             ── <|start|>assistant, any other channel; <|start|>functions; <|return|> ─▶ END

Headers cannot be malformed and no other control token can be generated. Where the answer has a language, words for the
user may only lead to a call: beside an answer in JSON they would spoil it for whoever concatenates what is said.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from shoal.proto.v1 import constraint_pb2 as pb
from shoal.router.constraint.rules import Language, ToolRule, TurnRules
from shoal.router.harmony.control import ControlTokens

Piece = int | str


def build_constraint(rules: TurnRules, control: ControlTokens) -> pb.Constraint:
    """The turn as a constraint. Pure; equal rules give equal constraints. `rules` were checked."""
    return _Builder(rules, control).build()


def build_text_constraint(language: Language, ends: Iterable[int]) -> pb.Constraint:
    """Nothing but a text of `language`, and then one of the tokens `ends`. For generation without a chat format."""
    constraint = pb.Constraint()
    text, _ = constraint.states.add(), constraint.states.add()
    text.grammar.CopyFrom(pb.ConstraintGrammar(kind=language.kind, source=language.source))
    for end in ends:
        _set(text.paths.add(), (end,), 1)
    return constraint


@dataclass(frozen=True, slots=True)
class _Mode:
    """How a turn may go on: numbers of the states between which it moves."""

    header: int
    analysis: int
    preamble: int


class _Builder:
    def __init__(self, rules: TurnRules, control: ControlTokens) -> None:
        self._rules = rules
        self._control = control
        self._constraint = pb.Constraint()
        if rules.reasoning_budget is not None:
            self._constraint.budgets.add(tokens=rules.reasoning_budget)

    def build(self) -> pb.Constraint:
        rules = self._rules
        free, bound = self._mode(), self._mode() if self._binds else None
        self._end = self._state()
        final = self._message(rules.answer, self._control.return_, self._end) if not rules.must_call else None
        calls = self._calls()
        self._fill(free, bound or free, final, calls)
        if bound is not None:
            self._fill(bound, bound, None, calls)
        return self._constraint

    def _calls(self) -> list[tuple[ToolRule, int]]:
        """Each tool that may be called, with the state of its arguments."""
        rules, c = self._rules, self._control
        more = self._state() if rules.repeatable else None
        calls = []
        for tool in rules.callable:
            after = more if more is not None and tool in rules.repeatable else self._end
            calls.append((tool, self._message(tool.arguments, c.call, after)))
        if more is None:
            return calls
        for tool, state in calls:
            if tool in rules.repeatable:
                for header in self._call_headers(tool):
                    self._way(more, _joined(c.start, "assistant", *header), state)
        for channel in ("analysis", "final"):
            self._way(more, (c.start, "assistant", c.channel, channel), self._end)
        self._way(more, (c.start, "assistant", c.channel, "commentary", c.message), self._end)
        self._way(more, (c.start, "functions"), self._end)
        self._way(more, (c.return_,), self._end)
        return calls

    @property
    def _binds(self) -> bool:
        """Whether a preamble commits the turn to a call."""
        rules = self._rules
        return rules.preambles and rules.answer is not None and bool(rules.callable) and not rules.must_call

    def _fill(self, mode: _Mode, after_preamble: _Mode, final: int | None, calls: list[tuple[ToolRule, int]]) -> None:
        """The ways between the states of a mode. `final`: the answer's state, None where a call must come."""
        c, rules = self._control, self._rules
        answers: list[tuple[Piece, ...]] = [(c.channel, "final", c.message)]
        if rules.answer is not None and rules.answer.is_json:
            answers.append((c.channel, "final ", c.constrain, "json", c.message))
        self._way(mode.header, (c.channel, "analysis", c.message), mode.analysis)
        if rules.preambles and (calls or rules.answer is None):
            self._way(mode.header, (c.channel, "commentary", c.message), mode.preamble)
        if final is not None:
            for answer in answers:
                self._way(mode.header, answer, final)
        for tool, state in calls:
            for header in self._call_headers(tool):
                self._way(mode.header, header, state)
        next_message: tuple[Piece, ...] = (c.end, c.start, "assistant")
        for state, then in ((mode.analysis, mode), (mode.preamble, after_preamble)):
            self._constraint.states[state].any.SetInParent()
            self._way(state, next_message, then.header)
        if rules.reasoning_budget is not None:
            analysis = self._constraint.states[mode.analysis]
            analysis.budget = 1
            spent = ((*next_message, *answers[0]), final) if final is not None else (next_message, mode.header)
            _set(analysis.spent, *spent)

    def _call_headers(self, tool: ToolRule) -> Iterable[tuple[Piece, ...]]:
        """The recipient may stand in the channel's part or in the author's."""
        c = self._control
        tail: tuple[Piece, ...] = (" ", c.constrain, tool.content_type, c.message)
        if tool.content_type == "code":
            tail = (" code", c.message)
        elif not tool.content_type:
            tail = (c.message,)
        yield _joined(c.channel, f"{tool.channel} to={tool.recipient}", *tail)
        yield _joined(f" to={tool.recipient}", c.channel, tool.channel, *tail)

    def _mode(self) -> _Mode:
        return _Mode(self._state(), self._state(), self._state())

    def _state(self) -> int:
        self._constraint.states.add()
        return len(self._constraint.states) - 1

    def _message(self, language: Language | None, last: int, after: int) -> int:
        """A state whose text is of `language` and from which the token `last` leads to the state `after`."""
        number = self._state()
        state = self._constraint.states[number]
        if language is None:
            state.any.SetInParent()
        else:
            state.grammar.CopyFrom(pb.ConstraintGrammar(kind=language.kind, source=language.source))
        self._way(number, (last,), after)
        return number

    def _way(self, start: int, pieces: tuple[Piece, ...], end: int) -> None:
        _set(self._constraint.states[start].paths.add(), pieces, end)


def _joined(*pieces: Piece) -> tuple[Piece, ...]:
    """Neighbouring texts as one, so that a token may span them."""
    joined: list[Piece] = []
    for piece in pieces:
        if joined and isinstance(piece, str) and isinstance(last := joined[-1], str):
            joined[-1] = last + piece
        else:
            joined.append(piece)
    return tuple(joined)


def _set(path: pb.ConstraintPath, pieces: tuple[Piece, ...], state: int) -> None:
    path.state = state
    for piece in pieces:
        if isinstance(piece, int):
            path.pieces.add(id=piece)
        else:
            path.pieces.add(text=piece.encode())
