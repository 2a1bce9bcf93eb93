"""Everything that can go wrong in a router, and what a client is told about it.

Refusing to start (never seen by a client):

    StartError               the configuration, the model directory or the machine; says which key or file

Ending a request (each is a `WireError`, translated to gRPC status by `shoal.wire.status` alone):

    InvalidError             INVALID_ARGUMENT
    ├── FieldError             names the field
    ├── PromptTooLongError     says by how many tokens
    └── ContentError           it has, or would give, what is not allowed here
    UnauthenticatedError     UNAUTHENTICATED
    └── CredentialError        no credential, or one that is wrong, expired or revoked
    DeniedError              PERMISSION_DENIED
    AbsentError              NOT_FOUND
    ├── SessionAbsentError
    ├── ModelAbsentError
    └── RequestAbsentError     no such request in the journal
    ConflictError            ABORTED
    ├── TurnConflictError      another writer appended first
    │   └── SessionGoneError     it was deleted meanwhile
    ├── TurnReservedError      another writer is about to
    ├── TakenOverError         another router goes on with the request
    ├── RequestHeldError       its owner lives
    ├── RequestOverError       it ended
    └── JournalGapError        tokens in the journal do not join
    ExistsError              ALREADY_EXISTS
    └── SessionExistsError
    OverloadedError          RESOURCE_EXHAUSTED
    ├── SessionFullError       a session has as much as may be kept
    ├── QueueFullError         this router has no room
    ├── QuotaError             a tenant or a key has used up what it may
    ├── WorkersBusyError       every worker refused
    ├── JournalFullError       a request's journal has no room
    └── SlowReaderError        the client reads too slowly
    UnavailableError         UNAVAILABLE
    ├── NoWorkerError          none is connected and ready
    ├── WorkerLostError        the stream to the worker broke
    │   └── WorkerLeavingError   the worker said that it does not go on with the work
    ├── MigrationFailedError   workers were lost, and no other one could go on
    ├── SessionsAwayError      Redis does not answer
    ├── CredentialsAwayError   nobody can be known: keys were never read
    ├── AuditError             the request cannot be recorded, and must be
    ├── ModerationAwayError    nobody judges it, and somebody must
    └── StoppingError          this router is shutting down
    LateError                DEADLINE_EXCEEDED
    InternalError            INTERNAL
    └── WorkerFaultError       a worker failed, or broke the protocol
"""

from __future__ import annotations

from shoal.wire.status import (
    AbsentError,
    ConflictError,
    DeniedError,
    ExistsError,
    InternalError,
    InvalidError,
    LateError,
    OverloadedError,
    UnauthenticatedError,
    UnavailableError,
    WireError,
)

__all__ = [
    "AuditError", "ContentError", "CredentialError", "CredentialsAwayError", "DeniedError", "FieldError",
    "JournalFullError", "JournalGapError", "LateError", "MigrationFailedError", "ModelAbsentError",
    "ModerationAwayError", "NoWorkerError", "PromptTooLongError", "QueueFullError", "QuotaError",
    "RequestAbsentError", "RequestHeldError", "RequestOverError", "SessionAbsentError", "SessionExistsError",
    "SessionFullError", "SessionsAwayError", "SlowReaderError", "StartError", "StoppingError", "TakenOverError",
    "TurnConflictError", "TurnReservedError", "WireError", "WorkerFaultError", "WorkerLeavingError",
    "WorkerLostError", "WorkersBusyError",
]  # fmt: skip


class StartError(Exception):
    """A router cannot start; the message names the key or the file and what is expected there."""


class FieldError(InvalidError):
    """A field of the request has a value it may not have."""

    reason = "invalid_field"

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(f"{field} {problem}")
        self.field = field
        self.violations = ((field, problem),)


class PromptTooLongError(InvalidError):
    """The prompt leaves no room for a single token of answer."""

    reason = "prompt_too_long"

    def __init__(self, tokens: int, max_context: int) -> None:
        over = tokens + 1 - max_context
        super().__init__(
            f"the prompt has {tokens} tokens, {over} too many: the context holds {max_context} with the answer"
        )
        self.over = over
        self.violations = (("prompt", f"has {over} tokens too many"),)


class CredentialError(UnauthenticatedError):
    """The request does not say who it is from, or not in a way that can be believed."""

    reason = "credential"


class ContentError(InvalidError):
    """The prompt has, or the answer would have, what is not allowed here."""

    reason = "content_refused"


class SessionAbsentError(AbsentError):
    """No such session: never made, expired, deleted, or another tenant's."""

    reason = "session_absent"


class ModelAbsentError(AbsentError):
    """The model that the request names is not served here."""

    reason = "model_absent"


class TurnConflictError(ConflictError):
    """The session is not at the turn that the writer expected."""

    reason = "turn_conflict"

    def __init__(self, expected: int, found: int, message: str = "") -> None:
        usual = f"turn {expected} was expected to come next, but the session is at turn {found}: read it again"
        super().__init__(message or usual)
        self.expected, self.found = expected, found


class SessionGoneError(TurnConflictError):
    """The session was deleted, or expired, while its turn was written; what has its name now is another one."""

    reason = "session_gone"

    def __init__(self, session_id: str, expected: int) -> None:
        super().__init__(
            expected, 0, f"session {session_id!r} was deleted, or expired, while turn {expected} was written"
        )


class RequestAbsentError(AbsentError):
    """No such request in the journal: never accepted, expired, or another tenant's."""

    reason = "request_absent"


class TakenOverError(ConflictError):
    """Another router goes on with the request; what this one has is of no use any more."""

    reason = "taken_over"


class RequestHeldError(ConflictError):
    """The request's owner lives, so nobody else may go on with it."""

    reason = "request_held"
    retryable = True


class RequestOverError(ConflictError):
    """The request ended: nothing can be added."""

    reason = "request_over"


class JournalGapError(ConflictError):
    """Tokens for the journal do not follow those that are there."""

    reason = "journal_gap"

    def __init__(self, name: str, found: int) -> None:
        super().__init__(f"request {name!r} has {found} tokens in its journal, which these do not follow")
        self.found = found


class JournalFullError(OverloadedError):
    """The bound on what is journaled of one request is reached."""

    reason = "journal_full"


class TurnReservedError(ConflictError):
    """Another request writes the session's next turn."""

    reason = "turn_reserved"
    retryable = True

    def __init__(self, session_id: str, *, retry_after_ms: int) -> None:
        super().__init__(
            f"another request writes the next turn of session {session_id!r}: wait for its end",
            retry_after_ms=retry_after_ms,
        )


class SessionExistsError(ExistsError):
    """There is a session of that name."""

    reason = "session_exists"


class SessionFullError(OverloadedError):
    """The session has as much as may be kept; waiting does not help."""

    reason = "session_full"
    retryable = False


class QueueFullError(OverloadedError):
    """This router runs and queues as many requests as it may."""

    reason = "queue_full"


class QuotaError(OverloadedError):
    """A tenant or a key has used up what it may use for now."""

    reason = "quota"


class WorkersBusyError(OverloadedError):
    """Every worker that is ready refused the request for lack of room."""

    reason = "workers_busy"


class SlowReaderError(OverloadedError):
    """Generated tokens pile up because the client does not read them."""

    reason = "slow_reader"


class NoWorkerError(UnavailableError):
    """No worker is connected and ready."""

    reason = "no_worker"


class WorkerLostError(UnavailableError):
    """The stream to the worker broke while it served the request."""

    reason = "worker_lost"


class WorkerLeavingError(WorkerLostError):
    """The worker lives and does not go on with the work: it leaves, or its group is not whole just now."""

    reason = "worker_leaving"


class MigrationFailedError(UnavailableError):
    """Workers were lost under a request, and within its bounds no other one could go on with it."""

    reason = "migration_failed"

    def __init__(self, delivered: int, tries: int, seconds: float, problem: WireError) -> None:
        super().__init__(
            f"no worker could go on after {delivered} tokens: {tries} tried, {seconds:.1f} s without a token; "
            f"at last: {problem}",
            retry_after_ms=1000,
        )
        self.delivered, self.tries = delivered, tries


class SessionsAwayError(UnavailableError):
    """Redis does not answer, so sessions cannot be served; stateless requests can."""

    reason = "sessions_away"


class AuditError(UnavailableError):
    """The request cannot be recorded, and is not served without."""

    reason = "audit"


class ModerationAwayError(UnavailableError):
    """The moderation service does not answer, and what it cannot judge is refused."""

    reason = "moderation_away"


class CredentialsAwayError(UnavailableError):
    """Nobody can be known now: what credentials are checked by could not be read yet."""

    reason = "credentials_away"


class ControllerAwayError(UnavailableError):
    """Who changes the cluster does not answer; serving does not need it."""

    reason = "controller_away"


class StoppingError(UnavailableError):
    """This router is shutting down; another one serves."""

    reason = "stopping"


class WorkerFaultError(InternalError):
    """A worker failed at the request, or broke the protocol."""

    reason = "worker_fault"
