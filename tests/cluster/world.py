"""A world without processes or time: workers that do what a group's actions ask, until they are told to fail."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from shoal.cluster import group_actions as do
from shoal.cluster import group_state as gs
from shoal.cluster.group_state import GroupState, Policy
from shoal.cluster.lifecycle import step
from shoal.wire.registry import GroupEntry
from shoal.workers.experts.group import EpochReport, GroupSpec, WorkerFacts

EXPERTS = 8


def facts(name: str, **changes: object) -> WorkerFacts:
    """What a healthy worker says of itself."""
    number = int(name.rpartition("-")[2])
    good = WorkerFacts(
        worker_id=name, address=f"127.0.0.1:{5000 + number}", pid=number, node_ip="127.0.0.1", num_layers=2,
        num_experts=EXPERTS, numerics_id="n", kernel_path="cpu", tokenizer_hash="t", bytes_read=1, seconds=0.1,
    )  # fmt: skip
    return replace(good, **changes)  # type: ignore[arg-type]  # tests pass fields of the right type


def new(ep_size: int = 2, **policy: float) -> GroupState:
    """A group that is wanted."""
    return GroupState("g0", ep_size, 6, 100.0, replace(Policy(settle=0.0, drain_timeout=5.0, breath=0.0), **policy))  # type: ignore[arg-type]  # as above


@dataclass
class World:
    """One group in it. What is to be done is done at once, or kept in `todo` while `slow`."""

    state: GroupState
    now: float = 0.0
    slow: bool = False
    alive: dict[str, GroupSpec | None] = field(default_factory=dict)
    """Living workers and the epoch that each serves."""
    busy: set[str] = field(default_factory=set)
    todo: list[do.Action] = field(default_factory=list)
    entries: list[GroupEntry] = field(default_factory=list)
    epochs: list[GroupSpec] = field(default_factory=list)
    gone: list[str] = field(default_factory=list)

    def tell(self, *events: gs.Event) -> None:
        """Let it happen, and all that follows unless the world is slow."""
        for event in events:
            self.state, actions = step(self.state, event, self.now)
            self.todo += actions
            self.check()
            while self.todo and not self.slow:
                self.act()

    def act(self) -> None:
        """Do the next thing."""
        match self.todo.pop(0):
            case do.Hire(name):
                self.alive[name] = None
                self.tell(gs.Prepared(name, facts(name)))
            case do.Enter(spec):
                self.epochs.append(spec)
                self.enter(spec)
            case do.Kill(name) | do.Dismiss(name):
                self.alive.pop(name, None)
                self.gone.append(name)
            case do.Drain(name, wanted=True) if name not in self.busy:
                self.tell(gs.Word(name, self.state.epoch, gs.Mood.SERVING, busy=False, draining=True))
            case do.Publish(entry):
                self.entries.append(entry)
            case do.Release():
                self.alive.clear()
                self.tell(gs.Released())

    def enter(self, spec: GroupSpec) -> None:
        """All members enter, if all are alive; else nobody can."""
        names = [m.worker_id for m in spec.members]
        for rank, name in enumerate(names):
            if name not in self.alive:
                continue
            if set(names) <= set(self.alive):
                self.alive[name] = spec
                report = EpochReport(rank, len(spec.placement.experts_of(0, rank)), 0, 0, 0.1, 0.1)
                self.tell(gs.Entered(name, spec.epoch, report))
            else:
                self.tell(gs.Refused(name, spec.epoch, gs.Obstacle.OTHER, "a peer is gone"))

    def die(self, name: str) -> None:
        """Its peers notice, and the controller too."""
        spec = self.alive.pop(name, None)
        self.tell(gs.Lost(name, "killed"))
        for peer, its in list(self.alive.items()):
            if spec is not None and its is spec:
                self.tell(gs.Word(peer, spec.epoch, gs.Mood.RESTING, busy=True, why="a peer is gone"))

    def pass_time(self, seconds: float) -> None:
        """With the ticks that come meanwhile."""
        for _ in range(int(seconds * 2)):
            self.now += 0.5
            self.tell(gs.Tick())

    def check(self) -> None:
        """What must hold at any time."""
        state = self.state
        names = [h.name for h in state.workers]
        assert len(set(names)) == len(names), names
        if state.change is not None:
            assert state.phase is gs.Phase.CHANGING, state.phase
            assert state.change.spec.epoch == state.epoch
            assert all(state.hand(m.worker_id) for m in state.change.spec.members), "an epoch with the dead"
        if state.phase is gs.Phase.READY and not state.broken:
            assert state.spec is not None
            assert len(state.members) == state.spec.size, "ready without a member"
            held = [e for rank in range(state.spec.size) for e in state.spec.placement.experts_of(0, rank)]
            assert set(held) == set(range(EXPERTS)), "an expert is held nowhere"

    @property
    def members(self) -> list[str]:
        """Names by rank."""
        return [h.name for h in self.state.members]


def ready(ep_size: int = 2, **policy: float) -> World:
    """A group that serves."""
    world = World(new(ep_size, **policy))
    world.tell(gs.Begun())
    return world
