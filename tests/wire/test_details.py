"""Errors with google.rpc details."""

from __future__ import annotations

from google.rpc import error_details_pb2, status_pb2

from shoal.wire.details import DETAILS_KEY, read_details
from shoal.wire.status import InvalidError, OverloadedError, status_of


def test_every_error_says_its_reason() -> None:
    """ErrorInfo has the stable reason and whose it is; code and message are the status's own."""
    trailing = status_of(KeyError("secret")).trailing
    info = read_details(trailing, error_details_pb2.ErrorInfo)
    whole = status_pb2.Status.FromString(dict(trailing)[DETAILS_KEY])

    assert info is not None
    assert (info.reason, info.domain) == ("INTERNAL", "shoal")
    assert (whole.code, "secret" in whole.message) == (13, False)


def test_wrong_fields_are_named() -> None:
    """BadRequest lists fields with what is wrong with each."""
    error = InvalidError("n is 0")
    error.violations = (("n", "is 0"), ("tools[0].name", "is empty"))
    bad = read_details(status_of(error).trailing, error_details_pb2.BadRequest)

    assert bad is not None
    assert [(v.field, v.description) for v in bad.field_violations] == [("n", "is 0"), ("tools[0].name", "is empty")]


def test_what_is_used_up_and_how_long_to_wait() -> None:
    """An overload has QuotaFailure and, where the wait is known, RetryInfo."""
    trailing = status_of(OverloadedError("full", retry_after_ms=250)).trailing
    wait = read_details(trailing, error_details_pb2.RetryInfo)
    quota = read_details(trailing, error_details_pb2.QuotaFailure)

    assert wait is not None
    assert wait.retry_delay.ToMilliseconds() == 250
    assert quota is not None
    assert quota.violations[0].subject == "shoal:overloaded"
    assert read_details(status_of(InvalidError("n", retry_after_ms=1)).trailing, error_details_pb2.RetryInfo) is None


def test_metadata_of_others_has_no_details() -> None:
    """Absent, misshapen or foreign metadata is no error."""
    assert read_details(None, error_details_pb2.RetryInfo) is None
    assert read_details([(DETAILS_KEY, b"\xff\xff")], error_details_pb2.RetryInfo) is None
    assert read_details([("x", "y")], error_details_pb2.RetryInfo) is None
