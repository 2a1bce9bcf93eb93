"""Errors as OpenAI's clients know them: a status, `{"error": {message, type, param, code}}`, and when to come back.

The one translation of our errors to HTTP, as `shoal.wire.status` is the one to gRPC.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import grpc

from shoal.router.errors import FieldError, ModelAbsentError, PromptTooLongError
from shoal.wire.status import AbsentError, ConflictError, InvalidError, Status, status_of

_Code = grpc.StatusCode
_KINDS: dict[grpc.StatusCode, tuple[int, str]] = {
    _Code.INVALID_ARGUMENT: (400, "invalid_request_error"),
    _Code.FAILED_PRECONDITION: (400, "invalid_request_error"),
    _Code.OUT_OF_RANGE: (400, "invalid_request_error"),
    _Code.UNAUTHENTICATED: (401, "authentication_error"),
    _Code.PERMISSION_DENIED: (403, "permission_error"),
    _Code.NOT_FOUND: (404, "invalid_request_error"),
    _Code.ABORTED: (409, "conflict_error"),
    _Code.ALREADY_EXISTS: (409, "conflict_error"),
    _Code.RESOURCE_EXHAUSTED: (429, "rate_limit_error"),
    _Code.CANCELLED: (499, "cancelled"),
    _Code.UNIMPLEMENTED: (501, "server_error"),
    _Code.UNAVAILABLE: (503, "server_error"),
    _Code.DEADLINE_EXCEEDED: (504, "server_error"),
}
_CODES = {"model_absent": "model_not_found", "invalid_field": "invalid_value", "invalid": "invalid_value"}

Rename = Callable[[str], str]
"""From a field of our own messages, such as `limits.max_tokens`, to what the caller wrote."""


class ParameterError(InvalidError):
    """A parameter of an HTTP request is wrong. `param` is its place, such as `messages[0].content[1]`."""

    reason = "invalid_parameter"

    def __init__(self, message: str, param: str | None = None, code: str = "invalid_value") -> None:
        super().__init__(message)
        self.param, self.error_code = param, code


class AbsentResponseError(AbsentError):
    """No such response: never stored, expired, deleted, or another tenant's."""

    reason = "response_absent"


class ResponseOverError(ConflictError):
    """A response that was worked on is over already: somebody deleted it or gave it up."""

    reason = "response_over"


class BodyTooLargeError(InvalidError):
    """The body is larger than this router reads."""

    reason = "body_too_large"


@dataclass(frozen=True, slots=True)
class Problem:
    """An error ready to be told."""

    http_status: int
    kind: str
    code: str
    message: str
    param: str | None = None
    retryable: bool = False
    retry_after_ms: int | None = None

    @property
    def body(self) -> dict[str, Any]:
        """The JSON that clients read."""
        return {"error": {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}}

    @property
    def headers(self) -> dict[str, str]:
        """When to come back; OpenAI's clients obey `x-should-retry` and prefer the milliseconds."""
        headers = {"x-should-retry": "true" if self.retryable else "false"}
        if self.http_status == 401:
            headers["www-authenticate"] = "Bearer"
        if self.retryable and self.retry_after_ms is not None:
            headers["retry-after"] = str(math.ceil(self.retry_after_ms / 1000))
            headers["retry-after-ms"] = str(self.retry_after_ms)
        return headers


@contextmanager
def renaming(rename: Rename) -> Iterator[None]:
    """What goes wrong inside with a field of ours is told as the caller's parameter."""
    try:
        yield
    except FieldError as error:
        param = rename(error.field)
        raise ParameterError(
            f"Invalid '{param}': it {error.message.removeprefix(error.field).strip()}.", param
        ) from error
    except PromptTooLongError as error:
        message = f"This is more than the model's context: {error.message}."
        raise ParameterError(message, rename("messages"), "context_length_exceeded") from error


def problem_of(error: BaseException) -> Problem:
    """What the caller is told about any exception; of what is not ours, nothing but that it happened.

    >>> problem_of(ValueError("secret")).http_status
    500
    """
    status = status_of(error)
    http_status, kind = _KINDS.get(status.code, (500, "server_error"))
    code, message, param = _CODES.get(status.reason, status.reason), status.message, None
    match error:
        case ParameterError():
            code, param = error.error_code, error.param
        case FieldError():
            param = error.field
        case ModelAbsentError():
            param = "model"
        case BodyTooLargeError():
            http_status = 413
    return _problem(status, http_status, kind, code, message, param)


def _problem(status: Status, http_status: int, kind: str, code: str, message: str, param: str | None) -> Problem:
    after = status.retry_after_ms
    if status.retryable and after is None and http_status == 429:
        after = 1000  # a 429 always says when to come back
    return Problem(http_status, kind, code, message, param, status.retryable, after)
