"""One turn of conversation: history and new messages in, typed events out, the turn stored before the end is told.

load the session → render → generate and parse ⇄ run the server's tools → append, atomically → done
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

from shoal.proto.v1 import inference_pb2 as api
from shoal.proto.v1.journal_pb2 import RequestRecord
from shoal.router.call import Call
from shoal.router.constraint.build import build_constraint
from shoal.router.constraint.rules import TurnRules
from shoal.router.errors import FieldError
from shoal.router.fleet.backend import Accepted, Backend, ModelFacts, Work
from shoal.router.harmony.control import ControlTokens
from shoal.router.harmony.message import ChatMessage, Rendered, Run, runs_of
from shoal.router.inference.merge import merged
from shoal.router.inference.opening import Opening, Openings, drops_oldest
from shoal.router.inference.record import chat_record
from shoal.router.inference.replay import Replay
from shoal.router.inference.resolve import check_model, is_repeatable, seed_of, worker_limits, worker_sampling
from shoal.router.inference.turn import TurnReader
from shoal.router.journal.keeper import Keeper, Kept
from shoal.router.journal.reopened import Reopened
from shoal.router.journal.tool_fact import ToolFact
from shoal.router.metrics import Metrics
from shoal.router.sessions.reservation import Reservation
from shoal.router.tokenizer import Tokenizer
from shoal.router.tools.runner import ToolCall, ToolOutput, ToolRunner, serves


@dataclass(frozen=True, slots=True)
class ChatSettings:
    """How turns are served."""

    model: str
    """What requests may call the model."""
    max_choices: int = 16
    well_formed: bool = True
    """Have workers keep headers well-formed where nothing else is demanded, too. Not where a request ignores the ends
    of turns: it goes on past what is well-formed."""
    tool_rounds: int = 16
    """Most calls of the server's tools in one turn."""
    tool_seconds: float = 120.0
    """Most time that they may take together."""


@dataclass(frozen=True, slots=True)
class _Plan:
    """What all choices of a turn have in common."""

    request: api.ChatRequest
    call: Call
    opening: Opening
    facts: ModelFacts
    seed: int
    reservation: Reservation | None
    """The session's next turn is ours; None without a session, or when the turn is stored."""
    backend: Backend


@dataclass(frozen=True, slots=True)
class Chat:
    """Serves `Chat`."""

    backend: Backend
    tokenizer: Tokenizer
    control: ControlTokens
    openings: Openings
    metrics: Metrics
    settings: ChatSettings
    keeper: Keeper

    async def events(self, request: api.ChatRequest, call: Call) -> AsyncGenerator[api.ChatResponse, None]:
        """The events of the turn, each choice's in order. Raises WireError; closing it cancels what runs and stores
        nothing."""
        check_model(request.model, self.settings.model)
        count = request.n or 1
        if count > self.settings.max_choices:
            raise FieldError("n", f"is {count}, at most {self.settings.max_choices} are allowed")
        async with self.openings.reserved(request, call) as reservation:
            session = reservation.session if reservation is not None else None
            known = await self.backend.wait_ready() if drops_oldest(request) else self.backend.model()
            opening = await self.openings.open(request, session, known.max_context if known is not None else 0)
            facts = await self.backend.wait_ready()
            plan = _Plan(request, call, opening, facts, seed_of(request.sampling), reservation, self.backend)
            first = self._work(plan, 0)  # what is wrong with the request shows here
            tokens = sum(len(run.ids) for run in first.prompt)
            await call.allowance.prompt(tokens, count * first.limits.max_tokens)
            self.metrics.tokens_in.inc(tokens)
            record = chat_record(request, call, plan.seed, opening, facts)
            async with contextlib.aclosing(self._turn(plan, record)) as events:
                async for event in events:
                    yield event

    async def resumed(self, reopened: Reopened, call: Call) -> AsyncGenerator[api.ChatResponse, None]:
        """All events of a turn that was accepted before, from the first on. Raises as `events` does."""
        record = reopened.record
        opening, backend = self.openings.reopen(record), Replay(self.backend, reopened)
        facts = replace(await self.backend.wait_ready(), max_context=record.max_context)
        async with self.openings.reserved_again(reopened, call) as reservation:
            plan = _Plan(record.chat, call, opening, facts, record.seed, reservation, backend)
            async with contextlib.aclosing(self._turn(plan, record, reopened)) as events:
                async for event in events:
                    yield event

    async def _turn(
        self, plan: _Plan, record: RequestRecord, reopened: Reopened | None = None
    ) -> AsyncGenerator[api.ChatResponse, None]:
        left, private = plan.call.deadline.remaining, plan.call.redact is not None
        async with self.keeper.keeping(record, left, reopened, private=private) as kept:
            count = plan.request.n or 1
            choices = [self._choice(plan, self._work(plan, choice), kept) for choice in range(count)]
            async with contextlib.aclosing(merged(choices)) as events:
                async for event in events:
                    yield event

    async def prompt(self, request: api.ChatRequest, tenant: str) -> list[int]:
        """The ids that the model would read. Raises as `events`."""
        check_model(request.model, self.settings.model)
        facts = self.backend.model()
        session = await self.openings.look(request, tenant)
        opening = await self.openings.open(request, session, facts.max_context if facts is not None else 0)
        return [token for piece in opening.prompt for token in piece.ids]

    async def _choice(self, plan: _Plan, work: Work, kept: Kept) -> AsyncGenerator[api.ChatResponse, None]:
        """The events of one choice: rounds of generation with calls of the server's tools between them."""
        request, call, opening = plan.request, plan.call, plan.opening
        reader = self._reader(plan, work)
        meter = self.metrics.meter(call.arrived, call.clock)
        tools, judged = _ToolTime(self.settings, request, call.redact), 0
        while True:
            async with contextlib.aclosing(plan.backend.submit(work)) as outputs:
                async for output in outputs:
                    if isinstance(output, Accepted):
                        if not tools.rounds:
                            for event in self._started(plan, reader, output.worker_id, await kept.accepted()):
                                yield event
                        continue
                    meter.tokens(len(output.ids))
                    kept.add(output, choice=work.choice, round_=work.round)
                    for event in reader.read(output):
                        yield event
                    if reader.finish is not None:
                        break
            wanted = reader.server_call
            if wanted is None:
                break
            await _judge(call, reader.messages[judged:])
            judged = len(reader.messages) + 1  # what the tool answers is looked at as it is told
            run = partial(tools.run, _runner(plan, wanted), _tool_call(plan, wanted))
            fact = await kept.tool(work.choice, work.round, run)
            tools.took(fact)
            before = reader.usage.input_tokens
            answered = reader.answered(fact.content, failed=fact.failed)
            if not kept.answered(work.choice, work.round):  # else its earlier owner counted it
                await call.allowance.grown(reader.usage.input_tokens - before)
            yield answered
            if tools.spent:
                yield reader.event(warning=api.Warning(code="tools_spent", message="no more calls in this turn"))
            if (next_work := self._next_work(plan, work.choice, reader, tools)) is None:
                reader.finish = api.FINISH_REASON_LENGTH
                break
            work = next_work
        assert reader.finish is not None, "a backend's stream ends with a finish"
        if plan.reservation is not None:
            await _judge(call, reader.messages[judged:])
            await plan.reservation.append(opening.turn(reader.messages, call.work_id))
        yield reader.event(done=reader.done())

    def _reader(self, plan: _Plan, work: Work) -> TurnReader:
        choice = f"{work.choice}_" if plan.request.n > 1 else ""
        reader = TurnReader(
            self.tokenizer,
            self.control,
            self.openings.renderer,
            stops=list(plan.request.limits.stop),
            call_prefix=f"call_{plan.call.work_id[:12]}_{choice}",
            choice=work.choice,
            redact=plan.call.redact,
            parallel=bool(plan.opening.demands.rules.repeatable),
            on_server=lambda recipient: any(serves(runner, recipient) for runner in plan.opening.demands.runners),
        )
        reader.usage.input_tokens = sum(len(run.ids) for run in work.prompt)
        return reader

    @staticmethod
    def _started(plan: _Plan, reader: TurnReader, worker: str, resumable: bool) -> list[api.ChatResponse]:
        started = api.Started(
            request_id=plan.call.request_id,
            seed=plan.seed,
            session_id=plan.request.session_id,
            turn=plan.opening.number,
            worker=worker,
            resumable=resumable,
        )
        warnings = [api.Warning(code="not_enforced", message=text) for text in plan.opening.warnings]
        if left_out := plan.opening.left_out:
            cut = f"the context has no room for {left_out} messages of the oldest turns: they were left out"
            warnings.append(api.Warning(code="context_cut", message=cut))
        return [reader.event(started=started), *(reader.event(warning=warning) for warning in warnings)]

    def _work(self, plan: _Plan, choice: int) -> Work:
        """The first round."""
        demands, tools = plan.opening.demands, _ToolTime(self.settings, plan.request, plan.call.redact)
        rules = demands.rules if not tools.spent else demands.without_server_tools(demands.rules)
        return self._round(plan, choice, runs_of(plan.opening.prompt), plan.request.limits, rules)

    def _next_work(self, plan: _Plan, choice: int, reader: TurnReader, tools: _ToolTime) -> Work | None:
        """The round after a tool's answer; None when no token is left for it."""
        limits, used = api.Limits(), reader.usage.output_tokens
        limits.CopyFrom(plan.request.limits)
        if limits.HasField("max_tokens"):
            if limits.max_tokens <= used:
                return None
            limits.max_tokens -= used
        limits.min_tokens = max(0, limits.min_tokens - used)
        said = (message.rendered for message in reader.messages)
        opening = Rendered(self.openings.renderer.opening)
        runs = runs_of([*plan.opening.prompt[:-1], *(piece for piece in said if piece is not None), opening])
        if sum(len(run.ids) for run in runs) >= plan.facts.max_context:
            return None
        rules = plan.opening.demands.later(reasoned=reader.usage.reasoning_tokens, may_call=not tools.spent)
        work = self._round(plan, choice, runs, limits, rules)
        return replace(work, request_id=f"{plan.call.work_id}-{tools.rounds}", round=tools.rounds)

    def _round(self, plan: _Plan, choice: int, runs: tuple[Run, ...], limits: api.Limits, rules: TurnRules) -> Work:
        request, call = plan.request, plan.call
        bound = plan.opening.demands.bind or (self.settings.well_formed and not limits.ignore_eos)
        return Work(
            request_id=call.work_id,
            choice=choice,  # workers key the random numbers by it, so one seed serves all
            prompt=runs,
            seed=plan.seed,
            sampling=worker_sampling(
                request.sampling, plan.facts, logprobs=request.logprobs, top_logprobs=request.top_logprobs
            ),
            limits=worker_limits(
                limits,
                sum(len(run.ids) for run in runs),
                plan.facts,
                stop_ids=self.control.stops,
                stop_bytes=False,
                go_on_after=(self.control.call,) if rules.repeatable else (),
            ),  # stop texts are looked for in the answer alone, which only we can tell from reasoning
            deadline=call.deadline.unix,
            remember=call.tenant if call.remembers and is_repeatable(request.sampling) else "",
            cache_salt=call.cache_salt,
            traceparent=call.traceparent,
            constraint=build_constraint(rules, self.control) if bound else None,
        )


class _ToolTime:
    """The bound on calls of the server's tools in one choice of a turn: their number and their time."""

    def __init__(self, settings: ChatSettings, request: api.ChatRequest, redact: Callable[[str], str] | None) -> None:
        """`redact` is applied to what tools give, before anybody reads it."""
        self._left, self._seconds, self._redact = settings.tool_rounds, settings.tool_seconds, redact
        if request.HasField("max_tool_calls"):
            self._left = min(self._left, request.max_tool_calls)
        self.rounds = 0

    @property
    def spent(self) -> bool:
        """Whether no more calls are run."""
        return self._left <= 0 or self._seconds <= 0

    async def run(self, runner: ToolRunner, call: ToolCall) -> ToolFact:
        """Run the tool within what is left; a call without anything left is answered all the same."""
        if self.spent:
            return ToolFact("No more tool calls are possible in this turn.", failed=True, seconds=0.0)
        loop = asyncio.get_running_loop()
        began = loop.time()
        try:
            async with asyncio.timeout(self._seconds):
                output = await runner.run(call)
        except TimeoutError:
            output = ToolOutput(f"{call.recipient} took too long and was stopped.", failed=True)
        content = self._redact(output.content) if self._redact is not None else output.content
        return ToolFact(content, output.failed, loop.time() - began)

    def took(self, fact: ToolFact) -> None:
        """A call was answered, now or by an earlier owner of the request."""
        self.rounds += 1
        self._left -= 1
        self._seconds -= fact.seconds


async def _judge(call: Call, said: Sequence[ChatMessage]) -> None:
    """Before it is kept or a tool is called with it. What the client is told is judged on its way, and later."""
    if call.judge is not None:
        for message in said:
            await call.judge(message.content)


def _runner(plan: _Plan, wanted: ChatMessage) -> ToolRunner:
    return next(runner for runner in plan.opening.demands.runners if serves(runner, wanted.recipient))


def _tool_call(plan: _Plan, wanted: ChatMessage) -> ToolCall:
    return ToolCall(wanted.recipient, wanted.content, wanted.call_id, plan.call.tenant, plan.request.session_id)
