"""What a turn starts from: the session read, the request understood, everything that the model will read rendered."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass, field, replace

from shoal.proto.v1 import inference_pb2 as api
from shoal.proto.v1.journal_pb2 import RequestRecord
from shoal.router.call import Call
from shoal.router.constraint.check import check_off_loop
from shoal.router.constraint.rules import TurnRules
from shoal.router.errors import (
    FieldError,
    PromptTooLongError,
    SessionFullError,
    SessionGoneError,
    SessionsAwayError,
    TurnConflictError,
)
from shoal.router.harmony.message import ChatMessage, Rendered
from shoal.router.harmony.render import Renderer, SystemSettings
from shoal.router.inference.conversation import calls_of, effort_of, identity_of, read_messages, spoken
from shoal.router.inference.demands import Demands, read_demands, tools_from_text, tools_to_text
from shoal.router.inference.fitting import last_turn, room_for_answer, without_oldest
from shoal.router.inference.resolve import checked_name
from shoal.router.journal.reopened import Reopened
from shoal.router.sessions.items import encode, kept_message, kept_piece
from shoal.router.sessions.reservation import Patience, Reservation, reserved
from shoal.router.sessions.store import Session, SessionStore, StoredItem, Turn
from shoal.router.tools.runner import Toolbox

_HOPELESS = 4  # times the context: longer prompts are not looked at any further
_LONG_PROMPT = 16_384  # characters; longer ones are rendered off the event loop


@dataclass(frozen=True, slots=True)
class Opening:
    """What a turn starts from."""

    number: int
    new: tuple[ChatMessage, ...]  # rendered
    prompt: tuple[Rendered, ...]
    demands: Demands
    warnings: tuple[str, ...]
    """What was demanded and cannot be enforced."""
    date: str
    tools: str
    """The functions in force, as the session keeps them."""
    ttl_seconds: int
    left_out: int = 0
    """Messages of the oldest turns that the model does not see, for want of room."""
    born: str = ""
    """`SessionInfo.born` of the session that it is a turn of; empty: of none, or it makes the session."""

    def turn(self, said: Sequence[ChatMessage], writer: str) -> Turn:
        """What the session gets when the model has spoken."""
        return Turn(
            number=self.number,
            items=(*self.new, *said),
            writer=writer,
            ttl_seconds=self.ttl_seconds,
            date=self.date,
            tools=self.tools,
        )


def drops_oldest(request: api.ChatRequest) -> bool:
    """Whether a conversation that is too long is cut. Raises FieldError."""
    if request.context_policy not in api.ContextPolicy.values():
        raise FieldError("context_policy", f"has no meaning {request.context_policy}")
    return request.context_policy == api.CONTEXT_POLICY_DROP_OLDEST


@dataclass(frozen=True, slots=True)
class Openings:
    """Opens turns."""

    renderer: Renderer
    store: SessionStore | None
    """None: this router has no Redis."""
    toolbox: Toolbox
    ttl_seconds: int
    max_ttl_seconds: int
    today: Callable[[], str]
    """The date, YYYY-MM-DD."""
    parallel_calls: bool = False
    """Whether the model may call several functions in one turn where a request does not say."""
    max_session_bytes: int = 0
    """Most that a session's items may take; 0: any."""
    patience: Patience = field(default_factory=Patience)
    """Of turns that write to a session."""

    @contextlib.asynccontextmanager
    async def reserved(self, request: api.ChatRequest, call: Call) -> AsyncGenerator[Reservation | None, None]:
        """The right to write the session's next turn, while inside; None for a request without a session.

        Raises FieldError, TurnReservedError, TurnConflictError and SessionsAwayError.
        """
        if not self._names_session(request):
            yield None
            return
        expected = request.expected_turn if request.HasField("expected_turn") else None
        names = call.tenant, request.session_id, call.work_id
        async with reserved(self.sessions(), *names, expected_turn=expected, patience=self.patience) as reservation:
            yield reservation

    @contextlib.asynccontextmanager
    async def reserved_again(self, reopened: Reopened, call: Call) -> AsyncGenerator[Reservation | None, None]:
        """The same for a turn that was accepted before; None also when it is stored already.

        Raises TurnReservedError, TurnConflictError and SessionsAwayError.
        """
        record = reopened.record
        session_id = record.chat.session_id
        if not session_id or reopened.lease is None:
            yield None
            return
        names = call.tenant, session_id, call.work_id
        session = await self.sessions().load(call.tenant, session_id)
        if session is not None and any(item.writer == call.work_id for item in session.items):
            yield None
            return
        again = reserved(self.sessions(), *names, expected_turn=record.turn, patience=self.patience)
        async with again as reservation:
            found = reservation.session.info.born if reservation.session is not None else ""
            if record.session_born not in ("", found):
                raise SessionGoneError(session_id, record.turn)
            yield reservation

    def reopen(self, record: RequestRecord) -> Opening:
        """The opening of a turn that was accepted before; its session may have changed since."""
        tools, server_tools = tools_from_text(record.tools)
        demands = read_demands(record.chat, tools, self.toolbox.chosen(server_tools), parallel=self.parallel_calls)
        return Opening(
            number=record.turn,
            new=tuple(kept_message(kept) for kept in record.new_messages),
            prompt=tuple(kept_piece(piece) for piece in record.prompt),
            demands=demands,
            warnings=tuple(record.warnings),
            date=record.date,
            tools=record.tools,
            ttl_seconds=record.session_ttl_seconds,
            left_out=record.left_out,
            born=record.session_born,
        )

    async def look(self, request: api.ChatRequest, tenant: str) -> Session | None:
        """The session as it is now, for who only looks. Raises FieldError and SessionsAwayError."""
        return await self.sessions().load(tenant, request.session_id) if self._names_session(request) else None

    async def open(self, request: api.ChatRequest, session: Session | None, max_context: int = 0) -> Opening:
        """With `max_context` the oldest turns are left out where they do not fit and the request allows it.

        Raises FieldError for whatever is wrong with the request, TurnConflictError, PromptTooLongError and
        SessionFullError.
        """
        effort, ttl = effort_of(request), self._ttl(request, session)
        self.toolbox.chosen(request.server_tools)  # a wrong name is refused before anything is read
        number = session.info.next_turn if session is not None else 0
        if request.HasField("expected_turn") and request.expected_turn != number:
            raise TurnConflictError(request.expected_turn, number)
        history = [item.message for item in session.items] if session is not None else []
        new = read_messages(request.messages, first_turn=number == 0, calls=calls_of(history))
        kept = session.info.tools if session is not None else ""
        tools, server_tools, lost = self._tools(request, kept)
        runners = self.toolbox.chosen(server_tools)
        demands = read_demands(request, tools, runners, parallel=self.parallel_calls)
        warnings = await check_off_loop(demands.rules) if demands.rules != TurnRules() else ()
        settings = SystemSettings(
            date=session.info.date if session is not None else self.today(),
            effort=effort,
            namespaces=demands.namespaces,
        )
        if identity := identity_of([*history, *new]):
            settings = replace(settings, identity=identity)
        if sum(len(message.content) for message in new) < _LONG_PROMPT:
            rendered, prompt = self._render(settings, history, new, demands, max_context)
        else:
            rendered, prompt = await asyncio.to_thread(self._render, settings, history, new, demands, max_context)
        self._check_size(session, rendered)
        in_force, left_out = tools_to_text(tools, server_tools), 0
        if drops_oldest(request) and max_context:
            room = room_for_answer(request.limits, max_context)
            said = spoken([*history, *rendered])
            kept_from = len(said) - len(spoken(rendered)) if session is not None else last_turn(said)
            excess = sum(len(piece.ids) for piece in prompt) - (max_context - room)
            kept_messages = without_oldest(said, excess, kept_from)
            if left_out := len(said) - len(kept_messages):
                prompt = tuple(self.renderer.prompt(settings, kept_messages, demands.functions, demands.formats))
        return Opening(
            number, rendered, prompt, demands, (*lost, *warnings), settings.date, in_force, ttl, left_out=left_out,
            born=session.info.born if session is not None else "",
        )  # fmt: skip

    def _tools(self, request: api.ChatRequest, kept: str) -> tuple[list[api.Tool], list[str], tuple[str, ...]]:
        """Functions and server tools in force, and warnings. `kept` is what the session remembers of both."""
        functions, server_tools = list(request.tools), list(request.server_tools)
        if request.only_these_tools:
            return functions, server_tools, ()
        kept_functions, kept_server = tools_from_text(kept)
        lost = [name for name in kept_server if name not in self.toolbox.names] if not server_tools else []
        told = tuple(f"server_tools: the session had {name!r}, which this server does not run" for name in lost)
        return functions or kept_functions, server_tools or [name for name in kept_server if name not in lost], told

    def sessions(self) -> SessionStore:
        """The store. Raises SessionsAwayError when there is none."""
        if self.store is None:
            raise SessionsAwayError("this router has no Redis, so it keeps no sessions: leave session_id empty")
        return self.store

    def _check_size(self, session: Session | None, new: Sequence[ChatMessage]) -> None:
        """Raises SessionFullError when the new messages do not fit; an answer that was generated always does."""
        if session is None or self.max_session_bytes <= 0:
            return
        adds = sum(len(encode(StoredItem(message, session.info.next_turn))) for message in new)
        if session.info.bytes + adds > self.max_session_bytes:
            raise SessionFullError(
                f"session {session.info.session_id!r} has {session.info.bytes} bytes, {adds} more do not fit into "
                f"{self.max_session_bytes}: fork it before an earlier turn, or begin another"
            )

    def _render(
        self,
        settings: SystemSettings,
        history: Sequence[ChatMessage],
        new: Sequence[ChatMessage],
        demands: Demands,
        max_context: int,
    ) -> tuple[tuple[ChatMessage, ...], tuple[Rendered, ...]]:
        """The new messages with their ids, and everything the model reads. Raises PromptTooLongError for what is many
        times too long, before more work goes into it; a little too much is counted exactly later."""

        def ids_of(message: ChatMessage) -> Rendered:
            return self.renderer.system(settings) if message.role == "system" else self.renderer.message(message)

        rendered: list[ChatMessage] = []
        count = 0
        for message in new:
            if max_context and (least := self.renderer.least_tokens(message)) > _HOPELESS * max_context:
                raise PromptTooLongError(least, max_context)
            rendered.append(replace(message, rendered=(piece := ids_of(message))))
            count += len(piece.ids)
            if max_context and count > _HOPELESS * max_context:
                raise PromptTooLongError(count, max_context)
        said = spoken([*history, *rendered])
        return tuple(rendered), tuple(self.renderer.prompt(settings, said, demands.functions, demands.formats))

    @staticmethod
    def _names_session(request: api.ChatRequest) -> bool:
        """Whether it is a turn of a session. Raises FieldError."""
        if not checked_name("session_id", request.session_id):
            for field in ("expected_turn", "session_ttl_seconds"):
                if request.HasField(field):
                    raise FieldError(field, "has no meaning without session_id")
            return False
        if request.n > 1:
            raise FieldError("n", "must be 1 with a session_id: a conversation goes on from one answer")
        return True

    def _ttl(self, request: api.ChatRequest, session: Session | None) -> int:
        if not request.HasField("session_ttl_seconds"):
            return session.info.ttl_seconds if session is not None else self.ttl_seconds
        if not 1 <= request.session_ttl_seconds <= self.max_ttl_seconds:
            raise FieldError("session_ttl_seconds", f"must be 1 to {self.max_ttl_seconds}")
        return request.session_ttl_seconds
