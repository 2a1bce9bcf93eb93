"""Raw generation: a prompt in, one or several continuations out, as events.

The events are a function of the tokens alone: one `tokens` event per token, so that every cut of the stream is a
place where it can go on; text that was held back to the end comes in one more, without ids.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, replace

from shoal.proto.v1 import inference_pb2 as api
from shoal.proto.v1 import worker_pb2 as pb
from shoal.proto.v1.journal_pb2 import RequestRecord
from shoal.router.call import Call
from shoal.router.constraint.build import build_text_constraint
from shoal.router.constraint.check import check_off_loop
from shoal.router.constraint.rules import Language, TurnRules
from shoal.router.errors import FieldError
from shoal.router.fleet.backend import Accepted, Backend, ModelFacts, Tokens, Work
from shoal.router.harmony.message import Run
from shoal.router.inference.demands import read_answer
from shoal.router.inference.logprobs import logprobs_of
from shoal.router.inference.merge import merged
from shoal.router.inference.numbering import Numbering
from shoal.router.inference.record import generate_record
from shoal.router.inference.replay import Replay
from shoal.router.inference.resolve import check_model, is_repeatable, seed_of, worker_limits, worker_sampling
from shoal.router.inference.stop_text import StopText
from shoal.router.journal.keeper import Keeper, Kept
from shoal.router.journal.reopened import Reopened
from shoal.router.metrics import Metrics
from shoal.router.tokenizer import Detokenizer, Tokenizer

FINISH = {
    pb.SEQUENCE_FINISH_STOP_TOKEN: api.FINISH_REASON_STOP,
    pb.SEQUENCE_FINISH_STOP_BYTES: api.FINISH_REASON_STOP,
    pb.SEQUENCE_FINISH_LENGTH: api.FINISH_REASON_LENGTH,
    pb.SEQUENCE_FINISH_LOOP: api.FINISH_REASON_LENGTH,
}
"""How a worker's reason is told to clients."""


@dataclass(frozen=True, slots=True)
class _Plan:
    """What all continuations have in common."""

    request: api.GenerateRequest
    call: Call
    facts: ModelFacts
    answer: Language | None
    warnings: tuple[str, ...]
    prompt: tuple[int, ...]
    seed: int
    backend: Backend


@dataclass(frozen=True, slots=True)
class Generator:
    """Serves `Generate`."""

    backend: Backend
    tokenizer: Tokenizer
    metrics: Metrics
    max_choices: int
    model: str
    """What requests may call the model."""
    keeper: Keeper

    async def events(self, request: api.GenerateRequest, call: Call) -> AsyncGenerator[api.GenerateResponse, None]:
        """The events of all choices, each choice's in order. Raises WireError; closing it cancels what runs."""
        check_model(request.model, self.model)
        answer, _ = read_answer(request.response_format)
        warnings = () if answer is None else await self._checked(request, answer)
        facts = await self.backend.wait_ready()
        prompt, seed = await self._prompt(request, facts), seed_of(request.sampling)
        plan = _Plan(request, call, facts, answer, warnings, tuple(prompt), seed, self.backend)
        works = self._works(plan)  # what is wrong with the request shows here
        await call.allowance.prompt(len(prompt), len(works) * works[0].limits.max_tokens)
        self.metrics.tokens_in.inc(len(prompt))
        record = generate_record(request, call, seed, works[0].prompt, facts, warnings)
        async with contextlib.aclosing(self._texts(plan, record)) as events:
            async for event in events:
                yield event

    async def resumed(self, reopened: Reopened, call: Call) -> AsyncGenerator[api.GenerateResponse, None]:
        """All events of a request that was accepted before, from the first on. Raises as `events` does."""
        record = reopened.record
        answer, _ = read_answer(record.generate.response_format)
        facts = replace(await self.backend.wait_ready(), max_context=record.max_context)
        prompt = tuple(token for piece in record.prompt for token in piece.ids)
        warnings, backend = tuple(record.warnings), Replay(self.backend, reopened)
        plan = _Plan(record.generate, call, facts, answer, warnings, prompt, record.seed, backend)
        async with contextlib.aclosing(self._texts(plan, record, reopened)) as events:
            async for event in events:
                yield event

    async def _texts(
        self, plan: _Plan, record: RequestRecord, reopened: Reopened | None = None
    ) -> AsyncGenerator[api.GenerateResponse, None]:
        left, private = plan.call.deadline.remaining, plan.call.redact is not None
        async with self.keeper.keeping(record, left, reopened, private=private) as kept:
            choices = [self._choice(plan, work, kept) for work in self._works(plan)]
            async with contextlib.aclosing(merged(choices)) as events:
                async for event in events:
                    yield event

    @staticmethod
    async def _checked(request: api.GenerateRequest, answer: Language) -> tuple[str, ...]:
        """Warnings about what the text shall look like. Raises FieldError."""
        if request.limits.ignore_eos:
            raise FieldError("limits.ignore_eos", "has no meaning with response_format, which says where a text ends")
        return await check_off_loop(TurnRules(answer=answer, answer_field="response_format.schema"))

    def _works(self, plan: _Plan) -> list[Work]:
        request, call, facts, prompt = plan.request, plan.call, plan.facts, plan.prompt
        count = request.n or 1
        if count > self.max_choices:
            raise FieldError("n", f"is {count}, at most {self.max_choices} are allowed")
        sampling = worker_sampling(
            request.sampling, facts, logprobs=request.logprobs, top_logprobs=request.top_logprobs
        )
        limits = worker_limits(request.limits, len(prompt), facts, stop_ids=(), stop_bytes=True)
        return [
            Work(
                request_id=call.work_id,
                choice=choice,  # workers key the random numbers by it, so one seed serves all
                prompt=(Run(prompt, generated=False),),
                seed=plan.seed,
                sampling=sampling,
                limits=limits,
                deadline=call.deadline.unix,
                remember=call.tenant if call.remembers and is_repeatable(request.sampling) else "",
                cache_salt=call.cache_salt,
                traceparent=call.traceparent,
                constraint=None if plan.answer is None else build_text_constraint(plan.answer, facts.eos_token_ids),
            )
            for choice in range(count)
        ]

    async def _prompt(self, request: api.GenerateRequest, facts: ModelFacts) -> list[int]:
        match request.WhichOneof("prompt"):
            case "text":
                ids = await self.tokenizer.encode_off_loop(request.text)
            case "tokens":
                ids = list(request.tokens.ids)
            case _:
                raise FieldError("prompt", "is missing: give text or tokens")
        if not ids:
            raise FieldError("prompt", "is empty")
        if (largest := max(ids)) >= facts.vocab_size:
            raise FieldError("tokens", f"has id {largest}, the vocabulary has {facts.vocab_size}")
        return ids

    async def _choice(self, plan: _Plan, work: Work, kept: Kept) -> AsyncGenerator[api.GenerateResponse, None]:
        """The events of one continuation."""
        call = plan.call
        state = _Continuation(self.tokenizer, work, list(plan.request.limits.stop))
        meter = self.metrics.meter(call.arrived, call.clock)
        async with contextlib.aclosing(plan.backend.submit(work)) as outputs:
            async for output in outputs:
                if isinstance(output, Accepted):
                    resumable = await kept.accepted()
                    for event in state.started(call.request_id, output.worker_id, resumable, plan.warnings):
                        yield event
                    continue
                meter.tokens(len(output.ids))
                kept.add(output, choice=work.choice)
                for event in state.read(output):
                    yield event
                if state.over:
                    return


class _Continuation:
    """What is known of one choice while it is generated."""

    def __init__(self, tokenizer: Tokenizer, work: Work, stops: list[str]) -> None:
        self._work, self._tokenizer = work, tokenizer
        self._detokenizer = Detokenizer(tokenizer)
        self._stop = StopText(stops)
        self._numbering = Numbering()
        self._usage = api.Usage(input_tokens=sum(len(run.ids) for run in work.prompt))
        self._numerics_changed = False
        self.over = False

    def started(
        self, request_id: str, worker: str, resumable: bool, warnings: Sequence[str]
    ) -> list[api.GenerateResponse]:
        started = api.Started(request_id=request_id, seed=self._work.seed, worker=worker, resumable=resumable)
        told = [api.Warning(code="not_enforced", message=text) for text in warnings]
        return [self._event(started=started), *(self._event(warning=warning) for warning in told)]

    def read(self, output: Tokens) -> list[api.GenerateResponse]:
        """The events of the worker's output, up to a stop text."""
        self._usage.cached_tokens = max(self._usage.cached_tokens, output.cached_tokens)
        self._numerics_changed |= output.numerics_changed
        events = []
        told = logprobs_of(output, self._tokenizer)
        for index, token in enumerate(output.ids):
            self._usage.output_tokens += 1
            text = self._stop.push(self._detokenizer.push(token))
            delta = api.TokenDelta(ids=[token], text=text)
            if told:
                delta.logprobs.append(told[index].logprob)
            if told and output.likeliest:
                delta.likeliest.append(told[index])
            events.append(self._event(tokens=delta))
            if self._stop.reached:
                return [*events, self._done(api.FINISH_REASON_STOP)]
        if output.finish != pb.SEQUENCE_FINISH_UNSPECIFIED:
            held = self._stop.push(self._detokenizer.finish()) + self._stop.finish()
            if held:
                events.append(self._event(tokens=api.TokenDelta(text=held)))
            events.append(self._done(FINISH[output.finish]))
        return events

    def _done(self, reason: api.FinishReason.ValueType) -> api.GenerateResponse:
        self.over = True
        done = api.Done(finish_reason=reason, usage=self._usage, numerics_changed=self._numerics_changed)
        return self._event(done=done)

    def _event(
        self,
        started: api.Started | None = None,
        tokens: api.TokenDelta | None = None,
        warning: api.Warning | None = None,
        done: api.Done | None = None,
    ) -> api.GenerateResponse:
        cursor = self._numbering.next(self._usage.output_tokens)
        choice = self._work.choice
        return api.GenerateResponse(
            cursor=cursor, choice=choice, started=started, tokens=tokens, warning=warning, done=done
        )
