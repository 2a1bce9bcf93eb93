"""The seam between a router and whatever generates tokens.

One method does the work: `submit` turns `Work` into a stream of outputs. `WorkerPool` is the real one; tests use it
too, against the scripted worker of `scripted_worker.py` over a real socket.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Protocol

from shoal.proto.v1 import worker_pb2 as pb
from shoal.proto.v1.constraint_pb2 import Constraint
from shoal.router.harmony.message import Run


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """What all connected workers agree on, or the smallest of what they say."""

    max_context: int
    """Most tokens of prompt and answer together."""
    vocab_size: int
    eos_token_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Work:
    """One sequence to generate. Nothing that a worker is told names a tenant or holds text."""

    request_id: str
    """Unique among everything that any router runs."""
    prompt: tuple[Run, ...]
    seed: int
    sampling: pb.WorkerSampling
    limits: pb.WorkerLimits
    deadline: float
    """Unix time, seconds."""
    choice: int = 0
    round: int = 0
    """Which generation of the choice, where tools of the server are called in between. Workers are not told."""
    attempt: int = 1
    """Grows with each try; a worker refuses one older than it has seen. The backend counts on from here."""
    start_offset: int = 0
    """Tokens already delivered by earlier attempts; they are the last, generated run of `prompt`."""
    remember: str = ""
    """Whose answers this one may be looked up among and kept with, a tenant; empty: nobody's."""
    cache_salt: bytes = b""
    traceparent: str = ""
    constraint: Constraint | None = None
    """What may be generated; None: anything."""
    numerics_id: str = ""
    """What the tokens already delivered were computed with; empty: unknown, or none were."""

    def message(self) -> pb.Submit:
        """As a worker is told."""
        given, generated = pb.TOKEN_ROLE_GIVEN, pb.TOKEN_ROLE_GENERATED
        return pb.Submit(
            request_id=self.request_id,
            attempt=self.attempt,
            choice=self.choice,
            start_offset=self.start_offset,
            prompt=[pb.PromptPart(role=generated if run.generated else given, ids=run.ids) for run in self.prompt],
            seed=self.seed,
            sampling=self.sampling,
            limits=self.limits,
            cache_salt=self.cache_salt,
            traceparent=self.traceparent,
            deadline=self.deadline,
            constraint=self.constraint,
        )


@dataclass(frozen=True, slots=True)
class Accepted:
    """A worker took the work; its tokens will follow."""

    worker_id: str
    numerics_id: str


@dataclass(frozen=True, slots=True)
class Tokens:
    """New tokens in order. The last output of a stream has `finish` set."""

    offset: int
    """Index of the first of `ids` among the generated tokens."""
    ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    finish: pb.SequenceFinish.ValueType
    cached_tokens: int = 0
    likeliest: tuple[pb.TopLogprobs, ...] = ()
    """One per id when asked for."""
    attempt: int = 1
    """The try that generated them: `Work.attempt` as the worker was told it."""
    epoch: int = 0
    """Version of membership and placement that computed them."""
    numerics_id: str = ""
    """What they were computed with."""
    known: bool = False
    """Whether they come from the journal."""
    numerics_changed: bool = False
    """Whether a migration ended at a worker that computes other bits than those before it: an undisturbed run might
    have said something else from there on."""


class Backend(Protocol):
    """Generates tokens."""

    def model(self) -> ModelFacts | None:
        """What is known of the model, None while no worker is connected."""
        ...

    async def wait_ready(self) -> ModelFacts:
        """The same, once a worker is ready. Raises NoWorkerError when that takes too long."""
        ...

    def submit(self, work: Work) -> AsyncGenerator[Accepted | Tokens, None]:
        """`Accepted` once, then `Tokens` without gap or overlap until one has `finish`.

        Closing the generator early cancels the work at the worker; that is always safe and never blocks.
        Raises NoWorkerError, WorkersBusyError and InvalidError (refused) before `Accepted`; MigrationFailedError,
        WorkerFaultError, SlowReaderError and LateError at any time. A single worker (`WorkerLink`) raises
        WorkerLostError where a pool would go on with another.
        """
        ...
