"""The records of one request that generates: accepted before anything is done, ended whatever happens."""

from __future__ import annotations

from dataclasses import dataclass, field

from shoal.proto.v1 import inference_pb2 as api
from shoal.router.access.caller import Caller
from shoal.router.audit.trail import Answer, Trail
from shoal.router.limits.policy import Recorded

Asked = api.ChatRequest | api.GenerateRequest | api.ResumeRequest


@dataclass(slots=True)
class Recording:
    """Writes to `trail`, None: nowhere."""

    trail: Trail | None
    caller: Caller
    method: str
    request: str
    how: Recorded
    asked: Asked
    model: str = ""
    answer: Answer = field(default_factory=Answer)
    """What was said; whoever relays the events tells it."""

    async def accepted(self) -> None:
        """Raises AuditError."""
        if self.trail is not None:
            await self.trail.accepted(self.caller, self.method, self.request, self.model, self.asked, self.how)

    def heard(self, event: api.ChatResponse | api.GenerateResponse) -> None:
        """The next event."""
        if self.trail is not None:
            self.answer.read(event)

    async def ended(self, outcome: str) -> None:
        """Raises AuditError."""
        if self.trail is not None:
            await self.trail.ended(self.caller, self.method, self.request, self.answer, outcome, self.how)
