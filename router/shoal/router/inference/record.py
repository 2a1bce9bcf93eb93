"""Requests as the journal keeps them: everything that their tokens depend on."""

from __future__ import annotations

import time
from collections.abc import Sequence

from shoal.proto.v1 import inference_pb2 as api
from shoal.proto.v1.journal_pb2 import RequestRecord
from shoal.router.call import Call
from shoal.router.fleet.backend import ModelFacts
from shoal.router.harmony.message import Rendered, Run
from shoal.router.inference.opening import Opening
from shoal.router.sessions.items import keep_message, keep_piece


def chat_record(request: api.ChatRequest, call: Call, seed: int, opening: Opening, facts: ModelFacts) -> RequestRecord:
    """A turn as it was accepted."""
    record = _record(call, seed, facts)
    record.chat.CopyFrom(request)
    record.prompt.extend(keep_piece(piece) for piece in opening.prompt)
    record.turn, record.date, record.tools = opening.number, opening.date, opening.tools
    record.new_messages.extend(keep_message(message, opening.number, call.work_id) for message in opening.new)
    record.warnings.extend(opening.warnings)
    record.left_out, record.session_born = opening.left_out, opening.born
    record.session_ttl_seconds = opening.ttl_seconds
    return record


def generate_record(
    request: api.GenerateRequest,
    call: Call,
    seed: int,
    prompt: Sequence[Run],
    facts: ModelFacts,
    warnings: Sequence[str],
) -> RequestRecord:
    """Raw generation as it was accepted."""
    record = _record(call, seed, facts)
    record.warnings.extend(warnings)
    record.generate.CopyFrom(request)
    record.prompt.extend(keep_piece(_piece(run)) for run in prompt)
    return record


def _record(call: Call, seed: int, facts: ModelFacts) -> RequestRecord:
    return RequestRecord(
        work_id=call.work_id,
        tenant=call.tenant,
        request_id=call.request_id,
        seed=seed,
        deadline=call.deadline.unix,
        accepted_at=time.time(),
        traceparent=call.traceparent,
        max_context=facts.max_context,
        origin=call.origin,
    )


def _piece(run: Run) -> Rendered:
    return Rendered(run.ids, 0, len(run.ids) if run.generated else 0)
