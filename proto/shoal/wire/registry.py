"""The cluster registry in Redis: the controller writes it, routers watch it.

One JSON record per group, so that a change of epoch is one atomic SET and no script spans hash tags.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

GROUPS_KEY = "shoal:groups"
"""A Redis set with the names of all groups."""


DESIRED_KEY = "shoal:desired"
"""What shall run, as JSON of `Desired`: the command line and the admin API write it through the controller."""

CONTROLLER_KEY = "shoal:controller"
"""`host:port` of the controller's admin API."""

ON_BEHALF_KEY = "shoal-on-behalf-of"
"""Metadata of a call to it: for whom one of our own processes asks, for the record."""


def group_key(group: str) -> str:
    """Key of one group's record."""
    return f"shoal:group:{{{group}}}"


@dataclass(frozen=True, slots=True)
class WorkerEntry:
    """One rank and where its gRPC stream listens (`host:port`)."""

    worker_id: str
    rank: int
    address: str
    draining: bool = False
    """It is about to leave: it takes nothing new, and what runs on it should move elsewhere now."""


@dataclass(frozen=True, slots=True)
class GroupEntry:
    """One group as routers see it. Only a ready group may be sent requests."""

    group: str
    epoch: int
    ready: bool
    workers: tuple[WorkerEntry, ...]


@dataclass(frozen=True, slots=True)
class Desired:
    """How many groups shall run, and of how many workers each."""

    ep_size: int
    groups: int

    def encode(self) -> bytes:
        """JSON."""
        return json.dumps(asdict(self)).encode()

    @classmethod
    def decode(cls, raw: bytes) -> Desired:
        """The record in `raw`; ValueError when it is not one."""
        try:
            fields = json.loads(raw)
            return cls(int(fields["ep_size"]), int(fields["groups"]))
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"record of what is desired is not readable: {error}") from error


def encode(entry: GroupEntry) -> bytes:
    """JSON of one record."""
    return json.dumps(asdict(entry), sort_keys=True).encode()


def decode(raw: bytes) -> GroupEntry:
    """The record in `raw`; ValueError when it is not one."""
    try:
        fields = json.loads(raw)
        workers = tuple(
            WorkerEntry(str(w["worker_id"]), int(w["rank"]), str(w["address"]), bool(w.get("draining", False)))
            for w in fields["workers"]
        )
        return GroupEntry(str(fields["group"]), int(fields["epoch"]), bool(fields["ready"]), workers)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"registry record is not readable: {error}") from error
