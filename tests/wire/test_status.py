"""Errors to gRPC status."""

from __future__ import annotations

import asyncio

import grpc
import pytest

from shoal.wire import status
from shoal.wire.status import InvalidError, OverloadedError, UnavailableError, status_of


def texts(made: status.Status) -> dict[str, str]:
    """The trailing metadata that people can read."""
    return {key: value for key, value in made.trailing if isinstance(value, str)}


def test_retry_hint_travels_in_both_spellings() -> None:
    """A retryable error with a known wait carries it for our clients and for gRPC's own retry policy."""
    made = status_of(OverloadedError("full", retry_after_ms=250))

    assert made.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert texts(made) == {
        "shoal-reason": "overloaded",
        "shoal-retryable": "true",
        "retry-after-ms": "250",
        "grpc-retry-pushback-ms": "250",
    }


def test_no_hint_without_a_known_wait() -> None:
    """Nothing is invented when it is not known how long to wait."""
    assert texts(status_of(UnavailableError("away"))) == {
        "shoal-reason": "unavailable",
        "shoal-retryable": "true",
    }


def test_what_cannot_be_retried_never_hints() -> None:
    """An invalid request is not sent again, even if somebody put a wait into its error."""
    assert "retry-after-ms" not in dict(status_of(InvalidError("n", retry_after_ms=1)).trailing)


def test_foreign_exceptions_keep_their_text_to_themselves() -> None:
    """An unexpected exception becomes INTERNAL without its message, which may hold anything."""
    made = status_of(KeyError("secret"))

    assert made.code is grpc.StatusCode.INTERNAL
    assert "secret" not in made.message


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (TimeoutError(), grpc.StatusCode.DEADLINE_EXCEEDED),
        (asyncio.CancelledError(), grpc.StatusCode.CANCELLED),
    ],
)
def test_time_and_cancellation_have_their_own_codes(error: BaseException, code: grpc.StatusCode) -> None:
    """asyncio's own signals are told as what they are."""
    assert status_of(error).code is code


def test_every_error_of_the_tree_has_its_own_reason() -> None:
    """Machines tell errors apart by a stable name."""
    classes = status.WireError.__subclasses__()
    reasons = [cls.reason for cls in classes]

    assert len(set(reasons)) == len(classes)


def test_number_is_the_google_rpc_code() -> None:
    """Error events carry the same number that gRPC does."""
    assert status_of(UnavailableError("away")).number == 14
