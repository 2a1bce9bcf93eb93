"""One turn of conversation: history and new messages in, typed events out, the turn stored before the end is told.

load the session → render → generate and parse → append, atomically → done
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass, replace

from shoal.proto.v1 import inference_pb2 as api
from shoal.router.call import Call
from shoal.router.errors import FieldError, SessionsAwayError, TurnConflictError
from shoal.router.fleet.backend import Accepted, Backend, Work
from shoal.router.harmony.control import ControlTokens
from shoal.router.harmony.message import ChatMessage, Rendered, runs_of
from shoal.router.harmony.render import Renderer, SystemSettings
from shoal.router.inference.conversation import effort_of, identity_of, read_messages, spoken
from shoal.router.inference.resolve import checked_name, seed_of, worker_limits, worker_sampling
from shoal.router.inference.turn import TurnReader
from shoal.router.metrics import Metrics
from shoal.router.sessions.store import Session, SessionStore, Turn
from shoal.router.tokenizer import Tokenizer

_LONG_PROMPT = 16_384  # characters; longer ones are rendered off the event loop


@dataclass(frozen=True, slots=True)
class _Opening:
    """What a turn starts from."""

    number: int
    new: tuple[ChatMessage, ...]  # rendered
    prompt: tuple[Rendered, ...]
    date: str
    ttl_seconds: int


@dataclass(frozen=True, slots=True)
class Chat:
    """Serves `Chat`."""

    backend: Backend
    tokenizer: Tokenizer
    control: ControlTokens
    renderer: Renderer
    sessions: SessionStore | None
    """None: this router has no Redis."""
    metrics: Metrics
    ttl_seconds: int
    max_ttl_seconds: int
    today: Callable[[], str]
    """The date, YYYY-MM-DD."""

    async def events(self, request: api.ChatRequest, call: Call) -> AsyncGenerator[api.ChatResponse, None]:
        """The events of the turn. Raises WireError; closing it cancels what runs and stores nothing."""
        opening = await self._open(request, call.tenant)
        facts = await self.backend.wait_ready()
        runs = runs_of(opening.prompt)
        prompt_tokens = sum(len(run.ids) for run in runs)
        work = Work(
            request_id=call.work_id,
            prompt=runs,
            seed=seed_of(request.sampling),
            sampling=worker_sampling(request.sampling, facts),
            limits=worker_limits(
                request.limits, prompt_tokens, facts, stop_ids=self.control.stops, stop_bytes=False
            ),  # stop texts are looked for in the answer alone, which only we can tell from reasoning
            deadline=call.deadline.unix,
            cache_salt=call.cache_salt,
            traceparent=call.traceparent,
        )
        self.metrics.tokens_in.inc(prompt_tokens)
        reader = TurnReader(
            self.tokenizer,
            self.control,
            self.renderer,
            stops=list(request.limits.stop),
            call_prefix=f"call_{call.work_id[:12]}_",
        )
        reader.usage.input_tokens = prompt_tokens
        meter = self.metrics.meter(call.arrived, call.clock)
        async with contextlib.aclosing(self.backend.submit(work)) as outputs:
            async for output in outputs:
                if isinstance(output, Accepted):
                    started = api.Started(
                        request_id=call.request_id,
                        seed=work.seed,
                        session_id=request.session_id,
                        turn=opening.number,
                        worker=output.worker_id,
                    )
                    yield reader.event(started=started)
                    continue
                meter.tokens(len(output.ids))
                for event in reader.read(output):
                    yield event
                if reader.finish is not None:
                    break
        assert reader.finish is not None, "a backend's stream ends with a finish"
        if request.session_id:
            await self._store(request.session_id, call, opening, reader.messages)
        yield reader.event(done=api.Done(finish_reason=reader.finish, usage=reader.usage))

    async def _open(self, request: api.ChatRequest, tenant: str) -> _Opening:
        """Read the session if there is one, render what the model will read."""
        effort, ttl = effort_of(request), self._ttl(request)
        session = await self._load(request, tenant)
        number = session.info.next_turn if session is not None else 0
        if request.HasField("expected_turn") and request.expected_turn != number:
            raise TurnConflictError(request.expected_turn, number)
        new = read_messages(request.messages, first_turn=number == 0)
        history = [item.message for item in session.items] if session is not None else []
        settings = SystemSettings(date=session.info.date if session is not None else self.today(), effort=effort)
        if identity := identity_of([*history, *new]):
            settings = replace(settings, identity=identity)
        if sum(len(message.content) for message in new) < _LONG_PROMPT:
            rendered, prompt = self._render(settings, history, new)
        else:
            rendered, prompt = await asyncio.to_thread(self._render, settings, history, new)
        return _Opening(number, rendered, prompt, settings.date, ttl)

    def _render(
        self, settings: SystemSettings, history: Sequence[ChatMessage], new: Sequence[ChatMessage]
    ) -> tuple[tuple[ChatMessage, ...], tuple[Rendered, ...]]:
        """The new messages with their ids, and everything the model reads."""

        def ids_of(message: ChatMessage) -> Rendered:
            return self.renderer.system(settings) if message.role == "system" else self.renderer.message(message)

        rendered = tuple(replace(message, rendered=ids_of(message)) for message in new)
        return rendered, tuple(self.renderer.prompt(settings, spoken([*history, *rendered])))

    async def _load(self, request: api.ChatRequest, tenant: str) -> Session | None:
        session_id = checked_name("session_id", request.session_id)
        if not session_id:
            for field in ("expected_turn", "session_ttl_seconds"):
                if request.HasField(field):
                    raise FieldError(field, "has no meaning without session_id")
            return None
        return await self._store_of_sessions().load(tenant, session_id)

    async def _store(self, session_id: str, call: Call, opening: _Opening, said: Sequence[ChatMessage]) -> None:
        turn = Turn(
            number=opening.number,
            items=(*opening.new, *said),
            writer=call.work_id,
            ttl_seconds=opening.ttl_seconds,
            date=opening.date,
        )
        await self._store_of_sessions().append(call.tenant, session_id, turn)

    def _store_of_sessions(self) -> SessionStore:
        if self.sessions is None:
            raise SessionsAwayError("this router has no Redis, so it keeps no sessions: leave session_id empty")
        return self.sessions

    def _ttl(self, request: api.ChatRequest) -> int:
        if not request.HasField("session_ttl_seconds"):
            return self.ttl_seconds
        if not 1 <= request.session_ttl_seconds <= self.max_ttl_seconds:
            raise FieldError("session_ttl_seconds", f"must be 1 to {self.max_ttl_seconds}")
        return request.session_ttl_seconds
