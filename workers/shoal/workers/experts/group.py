"""What the controller tells a worker about the group it joins, and what the worker answers."""

from __future__ import annotations

from dataclasses import dataclass

from shoal.workers.experts.placement import Placement


@dataclass(frozen=True, slots=True)
class Member:
    """One rank of a group and where its gRPC server listens (`host:port`)."""

    rank: int
    worker_id: str
    address: str


@dataclass(frozen=True, slots=True)
class GroupSpec:
    """Membership and placement under one epoch. Everything the ranks exchange carries the epoch.

    `store_host:store_port` is a store owned by the controller (never by a rank, so that no rank's death
    takes it along); each epoch uses its own key prefix in it.
    """

    group: str
    epoch: int
    store_host: str
    store_port: int
    members: tuple[Member, ...]
    placement: Placement
    sources: tuple[str, ...] = ()
    """Addresses of workers that may give experts: those of the epoch before, whether they stay or not."""
    serial: int = 0
    """Above the number in any name that the group's workers have had, so that nobody is named after who died."""

    def __post_init__(self) -> None:
        assert [m.rank for m in self.members] == list(range(len(self.members))), f"ranks not 0..N-1: {self.members}"
        assert self.placement.ep_size == len(self.members), "placement is for another number of ranks"

    @property
    def size(self) -> int:
        return len(self.members)

    def rank_of(self, worker_id: str) -> int:
        """The member's number; it must be one."""
        return next(m.rank for m in self.members if m.worker_id == worker_id)


@dataclass(frozen=True, slots=True)
class WorkerFacts:
    """What a worker knows of itself once its dense weights are loaded and its gRPC server listens."""

    worker_id: str
    address: str
    pid: int
    node_ip: str
    num_layers: int
    num_experts: int
    numerics_id: str
    kernel_path: str
    tokenizer_hash: str
    bytes_read: int
    seconds: float


@dataclass(frozen=True, slots=True)
class EpochReport:
    """What a new epoch cost one rank."""

    rank: int
    experts_held: int
    """Over all layers."""
    experts_loaded: int
    """Of those, brought into memory for this epoch."""
    bytes_read: int
    pause: float
    """Seconds for which this rank computed nothing."""
    seconds: float
    """All of it."""
    experts_copied: int = 0
    """Of those brought into memory, those that peers gave; the others were read from the checkpoint."""
