"""Which role may call what. A method that is not in the table is refused to everybody."""

from __future__ import annotations

from collections.abc import Mapping

from shoal.router.access.caller import ROLES, Role

# `everybody`: without any credential. What is of AdminService is for those tenants alone that `access.operators` names.
# HTTP methods are named as counts and logs name them.
_TABLE = """
method                              everybody  admin  operator  user  viewer  auditor

InferenceService/Generate           .          x      .         x     .       .
InferenceService/Chat               .          x      .         x     .       .
InferenceService/Resume             .          x      .         x     .       .
InferenceService/Tokenize           .          x      .         x     x       .
InferenceService/ListModels         .          x      x         x     x       x

SessionService/CreateSession        .          x      .         x     .       .
SessionService/ForkSession          .          x      .         x     .       .
SessionService/GetSession           .          x      .         x     x       .
SessionService/ListSessions         .          x      .         x     x       .
SessionService/DeleteSession        .          x      .         x     .       .

http.ChatCompletions                .          x      .         x     .       .
http.Completions                    .          x      .         x     .       .
http.CreateResponse                 .          x      .         x     .       .
http.GetResponse                    .          x      .         x     x       .
http.DeleteResponse                 .          x      .         x     .       .
http.CancelResponse                 .          x      .         x     .       .
http.ListInputItems                 .          x      .         x     x       .
http.ListModels                     .          x      x         x     x       x
http.GetModel                       .          x      x         x     x       x

http.Metrics                        .          x      x         .     .       x
AdminService/GetCluster             .          x      x         .     x       x
AdminService/Scale                  .          x      x         .     .       .
AdminService/Drain                  .          x      x         .     .       .
AdminService/Rebalance              .          x      x         .     .       .
AdminService/Inject                 .          .      .         .     .       .

http.Live                           x          x      x         x     x       x
http.Ready                          x          x      x         x     x       x
http.OpenApi                        x          x      x         x     x       x
http.Docs                           x          x      x         x     x       x

Health/Check                        x          x      x         x     x       x
Health/Watch                        x          x      x         x     x       x
Health/List                         x          x      x         x     x       x
ServerReflection/ServerReflectionInfo x        x      x         x     x       x
"""


def _read(table: str) -> tuple[frozenset[str], dict[str, frozenset[Role]]]:
    heads, *rows = [line.split() for line in table.strip().splitlines() if line.strip()]
    assert heads == ["method", "everybody", *ROLES], f"the table's columns are {heads}"
    everybody, allowed = set(), {}
    for name, *marks in rows:
        assert len(marks) == len(heads) - 1, f"row of {name}: {marks}"
        assert set(marks) <= {"x", "."}, f"row of {name}: {marks}"
        assert name not in allowed, f"{name} has two rows"
        allowed[name] = frozenset(role for role, mark in zip(ROLES, marks[1:], strict=True) if mark == "x")
        if marks[0] == "x":
            everybody.add(name)
    return frozenset(everybody), allowed


FOR_EVERYBODY, _allowed = _read(_TABLE)
"""Methods that need no credential."""
ALLOWED: Mapping[str, frozenset[Role]] = _allowed
"""Method -> the roles that may call it."""

GENERATING = frozenset(
    (
        "InferenceService/Generate", "InferenceService/Chat", "InferenceService/Resume",
        "http.ChatCompletions", "http.Completions", "http.CreateResponse",
    )
)  # fmt: skip
"""Methods that use the model."""


CHANGING = frozenset(
    (
        "SessionService/CreateSession", "SessionService/ForkSession", "SessionService/DeleteSession",
        "http.DeleteResponse", "http.CancelResponse",
        "AdminService/Scale", "AdminService/Drain", "AdminService/Rebalance",
    )
)  # fmt: skip
"""Methods that change what is kept, or the cluster itself, without using the model."""


def short_name(method: str) -> str:
    """A gRPC method as the table names it.

    >>> short_name("/shoal.proto.v1.InferenceService/Chat")
    'InferenceService/Chat'
    """
    service, _, name = method.rpartition("/")
    return f"{service.rpartition('.')[2].lstrip('/')}/{name}"
