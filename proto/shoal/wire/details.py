"""The details of an error in the form that Google's APIs have: a `google.rpc.Status` in `grpc-status-details-bin`.

Every error has ErrorInfo (its stable reason); beside it BadRequest names fields, RetryInfo says how long to wait, and
QuotaFailure says what is used up. Clients read them with grpcio-status, or with `read_details`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TypeVar

from google.protobuf.message import DecodeError, Message
from google.rpc import error_details_pb2, status_pb2

DETAILS_KEY = "grpc-status-details-bin"
DOMAIN = "shoal"
"""Whose reasons they are, in ErrorInfo."""

_Detail = TypeVar("_Detail", bound=Message)


def write_details(
    code: int,
    message: str,
    reason: str,
    *,
    violations: Sequence[tuple[str, str]] = (),
    retry_after_ms: int | None = None,
    exhausted: bool = False,
) -> bytes:
    """The value of the metadata key. `code` is a google.rpc.Code; `violations` are fields and what is wrong with each;
    `exhausted`: something of which there is a bounded amount is used up."""
    details: list[Message] = [error_details_pb2.ErrorInfo(reason=reason.upper(), domain=DOMAIN)]
    if violations:
        bad = error_details_pb2.BadRequest()
        for field, problem in violations:
            bad.field_violations.add(field=field, description=problem)
        details.append(bad)
    if retry_after_ms is not None:
        wait = error_details_pb2.RetryInfo()
        wait.retry_delay.FromMilliseconds(retry_after_ms)
        details.append(wait)
    if exhausted:
        quota = error_details_pb2.QuotaFailure()
        quota.violations.add(subject=f"{DOMAIN}:{reason}", description=message)
        details.append(quota)
    status = status_pb2.Status(code=code, message=message)
    for detail in details:
        status.details.add().Pack(detail)
    written: bytes = status.SerializeToString()
    return written


def read_details(trailing: Iterable[tuple[str, str | bytes]] | None, kind: type[_Detail]) -> _Detail | None:
    """The detail of a kind in an RPC's trailing metadata, None when there is none."""
    for key, value in trailing or ():
        if key != DETAILS_KEY or not isinstance(value, bytes):
            continue
        try:
            status = status_pb2.Status.FromString(value)
        except DecodeError:
            return None
        for detail in status.details:
            found = kind()
            if detail.Is(found.DESCRIPTOR):
                detail.Unpack(found)
                return found
    return None
