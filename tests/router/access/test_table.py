"""The table of roles and methods."""

from __future__ import annotations

import pytest

from shoal.proto.v1 import admin_pb2, inference_pb2
from shoal.router.access.caller import ROLES, Caller
from shoal.router.access.door import allowed
from shoal.router.access.table import ALLOWED, FOR_EVERYBODY, short_name
from shoal.router.errors import DeniedError


def methods() -> list[str]:
    """Every method of our own services."""
    files = (inference_pb2, admin_pb2)
    services = [service for file in files for service in file.DESCRIPTOR.services_by_name.values()]
    return [short_name(f"/{service.full_name}/{method.name}") for service in services for method in service.methods]


@pytest.mark.parametrize("method", methods())
def test_every_method_has_a_row_and_needs_a_credential(method: str) -> None:
    """A method that somebody adds is refused until the table says who may call it."""
    assert method in ALLOWED
    assert method not in FOR_EVERYBODY


@pytest.mark.parametrize("role", ROLES)
def test_a_method_without_a_row_is_refused_to_all(role: str) -> None:
    """Nothing is open because it was forgotten."""
    with pytest.raises(DeniedError, match="open to nobody"):
        allowed(Caller("t", role), "InferenceService/Forgotten")  # type: ignore[arg-type]  # a role, by its name


def test_who_reads_and_who_writes() -> None:
    """Viewers read and never write; auditors and operators see nobody's content."""
    reading = {method for method in ALLOWED if "viewer" in ALLOWED[method]}
    assert not reading & {"InferenceService/Chat", "InferenceService/Generate", "SessionService/DeleteSession"}
    for role in ("auditor", "operator"):
        assert not any("Session" in method or "Response" in method for method in ALLOWED if role in ALLOWED[method])
