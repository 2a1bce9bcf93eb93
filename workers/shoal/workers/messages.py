"""From a submit message to a sequence, and from step results to messages. Pure functions."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import accumulate

from shoal.proto.v1 import kv_pb2 as kv_pb
from shoal.proto.v1 import worker_pb2 as pb
from shoal.workers.constraint.cursor import Cursor
from shoal.workers.engine.output import Output
from shoal.workers.engine.sequence import Finish, Sequence, SequenceKey, StopParams
from shoal.workers.errors import RequestError
from shoal.workers.kv.manager import KvManager
from shoal.workers.kv.pool import Change
from shoal.workers.model.sampling import SamplingParams

_FINISH = {
    Finish.STOP_TOKEN: pb.SEQUENCE_FINISH_STOP_TOKEN,
    Finish.STOP_BYTES: pb.SEQUENCE_FINISH_STOP_BYTES,
    Finish.LENGTH: pb.SEQUENCE_FINISH_LENGTH,
    Finish.CANCELLED: pb.SEQUENCE_FINISH_CANCELLED,
    Finish.LOOP: pb.SEQUENCE_FINISH_LOOP,
}


def generated_in(submit: pb.Submit) -> list[int]:
    """The tokens of this choice that earlier attempts generated: the end of the prompt."""
    tokens = [int(token) for part in submit.prompt for token in part.ids]
    return tokens[max(0, len(tokens) - submit.start_offset) :]


def means(cancel: pb.Cancel, request_id: str, attempt: int, choice: int) -> bool:
    """Whether a cancel ends this sequence."""
    same = cancel.request_id == request_id and cancel.attempt == attempt
    return same and (not cancel.HasField("choice") or cancel.choice == choice)


def sequence_from(submit: pb.Submit, vocab_size: int, stream: str, constraint: Cursor | None = None) -> Sequence:
    """Check a submit and make its sequence; `constraint` is its compiled one, after the tokens generated already.
    Raises RequestError naming the field that is wrong."""
    assert submit.HasField("constraint") == (constraint is not None), "a constraint is compiled before the sequence"
    if not submit.request_id:
        raise RequestError("request_id is empty")
    tokens = [int(token) for part in submit.prompt for token in part.ids]
    if not tokens:
        raise RequestError("the prompt is empty")
    if submit.start_offset >= len(tokens):
        raise RequestError(f"start_offset {submit.start_offset} needs more than {len(tokens)} prompt tokens")
    if submit.limits.max_tokens <= submit.start_offset:
        raise RequestError(f"limits.max_tokens {submit.limits.max_tokens} must exceed start_offset")
    for name, ids in (("prompt", tokens), ("limits.stop_token_ids", submit.limits.stop_token_ids),
                      ("sampling.logit_bias", submit.sampling.logit_bias)):  # fmt: skip
        if ids and max(ids) >= vocab_size:
            raise RequestError(f"{name} has token {max(ids)}, the vocabulary ends at {vocab_size - 1}")
    if submit.adapter_id:
        raise RequestError(f"adapter {submit.adapter_id!r} is not loaded")
    s, stop = submit.sampling, submit.limits
    if any(not text for text in stop.stop_bytes):
        raise RequestError("limits.stop_bytes has an empty text")
    return Sequence(
        key=SequenceKey(submit.request_id, submit.choice),
        attempt=submit.attempt,
        tokens=tokens,
        start_offset=submit.start_offset,
        seed=submit.seed,
        sampling=SamplingParams(
            temperature=s.temperature,
            top_p=s.top_p,
            top_k=s.top_k,
            min_p=s.min_p,
            repetition_penalty=s.repetition_penalty,
            presence_penalty=s.presence_penalty,
            frequency_penalty=s.frequency_penalty,
            logit_bias=dict(s.logit_bias),
            logprobs=s.logprobs or s.top_logprobs > 0,
            top_logprobs=s.top_logprobs,
        ),
        stop=StopParams(
            max_tokens=stop.max_tokens,
            min_tokens=stop.min_tokens,
            stop_token_ids=frozenset(stop.stop_token_ids),
            stop_bytes=tuple(stop.stop_bytes),
            loop_limit=stop.loop_limit,
            end_loops=not stop.report_loops_only,
        ),
        stream=stream,
        salt=submit.cache_salt,
        marks=tuple(accumulate(len(part.ids) for part in submit.prompt)),
        prompt_logprobs=s.prompt_logprobs and not submit.start_offset,  # they came before the first token
        constraint=constraint,
        priority=submit.priority,
        deadline=submit.deadline,
    )


def kv_events_from(kv: KvManager) -> kv_pb.KvEvents | None:
    """Take the changes of both pools since the last call; None when there were none."""
    news = kv_pb.KvEvents(block_size=kv.block_size)
    for pool, group in ((kv.full, kv_pb.KV_GROUP_FULL), (kv.sliding, kv_pb.KV_GROUP_SLIDING)):
        while pool.events:
            event = pool.events.popleft()
            change = kv_pb.KV_CHANGE_STORED if event.change is Change.STORED else kv_pb.KV_CHANGE_REMOVED
            news.events.add(change=change, group=group, hash=event.hash)
    return news if news.events else None


def step_messages(frame: pb.Step, outputs: Iterable[Output]) -> dict[str, pb.ConnectResponse]:
    """What one step says to each router's stream: `frame` with the outputs of that stream."""
    by_stream: dict[str, pb.ConnectResponse] = {}
    for output in outputs:
        stream = output.sequence.stream
        if stream not in by_stream:
            by_stream[stream] = pb.ConnectResponse(step=frame)
        _add_output(by_stream[stream].step.outputs.add(), output)
    return by_stream


def _add_output(message: pb.SequenceOutput, output: Output) -> None:
    sequence, token = output.sequence, output.token
    message.request_id = sequence.key.request_id
    message.attempt = sequence.attempt
    message.choice = sequence.key.choice
    message.offset = output.offset
    message.looping = output.looping
    if output.offset == sequence.start_offset:
        message.cached_tokens = sequence.cached or 0
    for p in output.prompt:
        message.prompt_logprobs.add(logprob=p.logprob, top=[pb.TopLogprob(id=i, logprob=q) for i, q in p.top])
    if token is not None:
        message.ids.append(token.id)
        if token.logprob is not None:
            message.logprobs.append(token.logprob)
        if token.top:
            message.top_logprobs.add(top=[pb.TopLogprob(id=i, logprob=p) for i, p in token.top])
    if output.finish is not None and output.finish is not Finish.DEAD_END:  # that is told as a refusal
        message.finish = _FINISH[output.finish]
