"""The life of one group as a pure state machine: (state, event, now) -> (state, actions).

    STARTING -> READY <-> CHANGING        STOPPING -> STOPPED
                  ^--------- WAITING

There is one way to change a group: the next epoch, with other members or another placement. A start, a death, a
replacement, growing, shrinking and rebalancing differ only in what it is made of. When an epoch cannot be entered, the
next one is tried with whoever is left.

Nothing here waits, calls or reads a clock: the controller performs the actions and reports what came of them as
events, so that the same code runs under Ray, in tests and in a simulator. Events about workers or epochs that are over
are dropped.
"""

from __future__ import annotations

from dataclasses import replace

from shoal.cluster import group_actions as do
from shoal.cluster.group_actions import Action
from shoal.cluster.group_state import (
    OVER,
    Balanced,
    Begun,
    Change,
    DrainAsked,
    Entered,
    Event,
    GroupState,
    Hand,
    Lost,
    Mood,
    Obstacle,
    Phase,
    Prepared,
    Refused,
    Released,
    Scaled,
    Stage,
    StopAsked,
    Tick,
    Word,
)
from shoal.cluster.placement import even_placement, moved_placement
from shoal.wire.registry import GroupEntry, WorkerEntry
from shoal.workers.experts.group import EpochReport, GroupSpec, Member, WorkerFacts

Step = tuple[GroupState, tuple[Action, ...]]

_SLOWEST = 60.0  # seconds between two attempts at something that the world does not give


def step(state: GroupState, event: Event, now: float) -> Step:
    """What one event makes of a group, and what is to be done about it, in order."""
    match event:
        case Released() if state.phase is Phase.STOPPING:
            return replace(state, phase=Phase.STOPPED), ()
        case StopAsked(grace) if state.phase not in (Phase.STOPPING, Phase.STOPPED):
            # Routers must stop sending before the workers refuse.
            gone = GroupEntry(state.group, state.epoch, ready=False, workers=())
            return replace(state, phase=Phase.STOPPING, change=None), (do.Publish(gone), do.Release(grace))
        case _ if state.phase in OVER:
            return state, ()
    before = registry_entry(state)
    state, actions = _heard(state, event, now)
    if state.phase not in OVER:
        state, more = _settle(state, now)
        actions += more
    after = registry_entry(state)
    if before != after or isinstance(event, Begun):
        actions += (do.Publish(after),)
    return state, actions


def registry_entry(state: GroupState) -> GroupEntry:
    """The group as routers shall see it: the living members of the epoch in force. While an epoch is changed they keep
    what they have and go on taking requests."""
    ready = state.phase in (Phase.READY, Phase.CHANGING) and state.ever_ready and bool(state.members)
    workers = tuple(
        WorkerEntry(h.name, rank, h.facts.address, h.stage is Stage.LEAVING)
        for rank, h in enumerate(state.members)
        if h.facts is not None
    )
    return GroupEntry(state.group, state.spec.epoch if state.spec else state.epoch, ready, workers)


def disagreement(facts: tuple[WorkerFacts, ...], ep_size: int) -> str:
    """What workers do not agree on, empty when they may form a group of `ep_size`.

    `numerics_id` covers device class, dtype, kernel version and checkpoint: results are only equal bit for bit
    within one.
    """
    for name in ("numerics_id", "tokenizer_hash", "num_layers", "num_experts"):
        values = [getattr(f, name) for f in facts]
        for i, value in enumerate(values):
            if value != values[0]:
                return f"{facts[0].worker_id} and {facts[i].worker_id} differ in {name}: {values[0]} and {value}"
    if facts and facts[0].num_experts < ep_size:
        return f"{ep_size} workers cannot share {facts[0].num_experts} experts: lower cluster.ep_size"
    return ""


# -- what was heard -------------------------------------------------------------------------------------------------


def _heard(state: GroupState, event: Event, now: float) -> Step:
    match event:
        case Begun(found, serial):
            return _adopted(replace(state, serial=max(state.serial, serial)), found, now)
        case Prepared(name, facts) if (hand := state.hand(name)) and hand.stage is Stage.STARTING:
            state = _put(state, replace(hand, stage=Stage.SPARE, facts=facts, busy=False))
            known = tuple(h.facts for h in state.workers if h.facts is not None)
            if why := disagreement(known, state.ep_size):
                return _lost(state, name, why, now)
            return replace(state, hire_failures=0), ()
        case Lost(name, why, elsewhere) if state.hand(name):
            return _lost(state, name, why, now, elsewhere)
        case Word():
            return _word(state, event, now)
        case Entered(_, epoch, report) if state.change and state.change.spec.epoch == epoch:
            return _entered(state, state.change, report)
        case Refused(name, epoch, obstacle, why) if state.change and state.change.spec.epoch == epoch:
            return _refused(state, state.change, name, obstacle, why, now)
        case Scaled(ep_size):
            facts_known = next((h.facts for h in state.workers if h.facts), None)
            most = facts_known.num_experts if facts_known else ep_size
            return replace(state, ep_size=min(ep_size, most), hire_at=0.0, hire_failures=0), ()
        case DrainAsked(name) if (hand := state.hand(name)) and hand.stage is Stage.MEMBER:
            return _leave(state, hand, now)
        case Balanced(epoch, placement) if state.spec and state.spec.epoch == epoch and state.phase is Phase.READY:
            return replace(state, placement=placement), ()
        case Tick() if not state.ever_ready and now >= state.deadline:
            return _give_up(state, f"not ready in time{_missing(state)}")
        case _:
            return state, ()


def _adopted(state: GroupState, found: tuple[tuple[WorkerFacts, GroupSpec | None], ...], now: float) -> Step:
    """Workers that outlived their controller: the newest epoch is in force, if all its members are there. If not, those
    left have their breath, as after any death."""
    specs = [spec for _, spec in found if spec is not None]
    newest = max(specs, key=lambda spec: spec.epoch, default=None)
    current = [m.worker_id for m in newest.members] if newest else []
    for facts, spec in found:
        inside = spec is not None and newest is not None and spec.epoch == newest.epoch and facts.worker_id in current
        state = _put(state, Hand(facts.worker_id, Stage.MEMBER if inside else Stage.SPARE, facts))
    if newest is None:
        return state, ()
    whole = all((h := state.hand(name)) is not None and h.stage is Stage.MEMBER for name in current)
    epoch, hire_at = max(state.epoch, newest.epoch), 0.0 if whole else now + state.policy.breath
    return replace(
        state, spec=newest, epoch=epoch, ever_ready=True, phase=Phase.READY, broken=not whole, hire_at=hire_at
    ), (() if whole else (do.Remind(hire_at),))  # fmt: skip


def _lost(state: GroupState, name: str, why: str, now: float, elsewhere: bool = False) -> Step:
    hand = state.hand(name)
    assert hand is not None, f"{name} is not a worker of {state.group}"
    state = replace(state, workers=tuple(h for h in state.workers if h.name != name), reason=f"{name}: {why}")
    actions: tuple[Action, ...] = (do.Kill(name),)
    if hand.stage is Stage.STARTING or hand.stage is Stage.SPARE:
        if not state.ever_ready:
            return _give_up(state, state.reason)
        delay = _patience(1.0, state.hire_failures, _SLOWEST)
        state = replace(state, hire_failures=state.hire_failures + 1, hire_at=now + delay)
        actions += (do.Remind(state.hire_at),)
    else:
        breath = state.policy.breath if elsewhere or state.members or state.at(Stage.SPARE) else 0.0
        state = replace(state, hire_at=max(now + breath, state.hire_at if state.hire_failures else now))
        actions += (do.Remind(state.hire_at),)
    if state.change and name in _names(state.change.spec):
        state = replace(_abandoned(state), settle_at=now)
    elif state.spec and name in _names(state.spec):
        state = replace(state, broken=True, settle_at=now)
    return state, actions


def _word(state: GroupState, word: Word, now: float) -> Step:
    hand = state.hand(word.name)
    if hand is None or hand.facts is None:
        return state, ()
    if hand.stage is not Stage.LEAVING or word.draining:  # a word from before it was told to drain says nothing
        hand = replace(hand, busy=word.busy)
        state = _put(state, hand)
    if word.mood is Mood.LEAVING and hand.stage in (Stage.MEMBER, Stage.LEAVING):
        return _put(state, replace(hand, stage=Stage.LEAVING, busy=False, leave_by=now)), ()
    current = state.change.spec if state.change else state.spec
    if current is None or current.epoch != word.epoch or word.name not in _names(current):
        return state, ()
    if word.mood is Mood.UNFIT:
        return _unfit(state, f"{word.name}: {word.why}")
    if word.mood is Mood.RESTING and state.change:  # it entered and broke again before the others had entered
        return replace(_abandoned(state), settle_at=now + state.policy.settle), ()
    if word.mood is Mood.RESTING and not state.broken:
        at = now + state.policy.settle
        return replace(state, broken=True, settle_at=at, reason=f"{word.name}: {word.why}"), (do.Remind(at),)
    return state, ()


def _entered(state: GroupState, change: Change, report: EpochReport) -> Step:
    change = replace(change, reports=(*change.reports, report))
    if len(change.reports) < change.spec.size:
        return replace(state, change=change), ()
    inside = _names(change.spec)
    actions: tuple[Action, ...] = ()
    for hand in state.workers:
        if hand.name in inside and hand.stage is Stage.SPARE:
            state = _put(state, replace(hand, stage=Stage.MEMBER))
        elif hand.name not in inside and hand.stage in (Stage.MEMBER, Stage.LEAVING):
            state = replace(state, workers=tuple(h for h in state.workers if h.name != hand.name))
            actions += (do.Dismiss(hand.name),)
    by_rank = tuple(sorted(change.reports, key=lambda r: r.rank))
    return replace(
        state, phase=Phase.READY, spec=change.spec, reports=by_rank, change=None, broken=False,
        failures=0, scarce=0, ever_ready=True, reason="",
    ), actions  # fmt: skip


def _refused(state: GroupState, change: Change, name: str, obstacle: Obstacle, why: str, now: float) -> Step:
    reason = f"{name}: {why}"
    if obstacle is Obstacle.UNFIT:
        return _unfit(state, reason)
    if obstacle is Obstacle.HUNG:
        return _lost(state, name, why, now)
    if obstacle is Obstacle.UNREADABLE:
        return _unreadable(state, reason, now)
    if obstacle is Obstacle.NO_ROOM:
        state = replace(state, change=None, placement=None, reason=reason)
        if not state.ever_ready:
            return _give_up(state, reason)
        if state.spec is not None and not state.broken:  # the old epoch goes on, and whoever was to leave stays
            return _stay(replace(state, phase=Phase.READY))
        return replace(state, scarce=change.spec.size, hire_at=now if not state.hire_failures else state.hire_at), ()
    again = now + _patience(state.policy.settle, state.failures, 1.0)
    state = replace(_abandoned(state), failures=state.failures + 1, settle_at=again, reason=reason)
    if state.failures % state.policy.patience == 0:  # somebody cannot be reached by the others: try without
        if not state.ever_ready and state.failures >= 2 * state.policy.patience:
            return _give_up(state, reason)
        return _lost(state, _names(change.spec)[-1], f"given up after epochs that failed: {why}", now)
    return state, (do.Remind(again),)


def _unreadable(state: GroupState, reason: str, now: float) -> Step:
    """Nobody is to blame, and another worker would not read better: all stay, and it is tried again, more and more
    slowly. The old epoch goes on where it can."""
    if not state.ever_ready:
        return _give_up(state, reason)
    again = now + _patience(1.0, state.failures, _SLOWEST)
    phase = Phase.WAITING if state.broken or state.spec is None else Phase.READY
    state = replace(
        state, phase=phase, change=None, placement=None, failures=state.failures + 1, settle_at=again, reason=reason
    )  # fmt: skip
    return state, (do.Remind(again),)


def _unfit(state: GroupState, reason: str) -> Step:
    """Wrong is worse than down: nobody is asked any more, and all start anew from the checkpoint."""
    unfit = state.unfit + 1
    if not state.ever_ready or unfit >= state.policy.patience:
        return _give_up(state, f"self-test: {reason}")
    kills = tuple(do.Kill(h.name) for h in state.workers)
    fresh = replace(
        state, phase=Phase.STARTING, workers=(), spec=None, change=None, broken=False, unfit=unfit,
        placement=None, reason=f"self-test: {reason}",
    )  # fmt: skip
    return fresh, kills


# -- what follows ---------------------------------------------------------------------------------------------------


def _settle(state: GroupState, now: float) -> Step:
    """Bring the workers nearer to what is wanted: hire, send away, and begin the next epoch when one is due."""
    state, actions = _staff(state, now)
    if state.change is not None:
        return state, actions
    if now < state.settle_at:
        return state, actions
    if state.broken and not state.members:  # nobody is left: all begins again
        state = replace(state, spec=None, broken=False)
    names = _next_members(state, now)
    if not names:
        if state.spec is None:
            state = replace(state, phase=Phase.STARTING)
        elif state.broken:
            state = replace(state, phase=Phase.WAITING)
        return state, actions
    spec = _next_spec(state, names)
    together = not state.broken
    state = replace(
        state, phase=Phase.CHANGING, epoch=spec.epoch, change=Change(spec, together), placement=None
    )  # fmt: skip
    return state, (*actions, do.Enter(spec, together))


def _staff(state: GroupState, now: float) -> Step:
    actions: tuple[Action, ...] = ()
    members = state.at(Stage.MEMBER)
    for hand in reversed(members[state.ep_size :] if not state.broken else ()):
        state, drains = _leave(state, hand, now)
        actions += drains
    wanted = state.ep_size + state.policy.spares
    staying = state.at(Stage.STARTING, Stage.SPARE, Stage.MEMBER)
    entering = _names(state.change.spec) if state.change else ()
    surplus = [h for h in staying if h.stage is not Stage.MEMBER and h.name not in entering]
    for hand in surplus[: max(0, len(staying) - wanted)]:
        state = replace(state, workers=tuple(h for h in state.workers if h.name != hand.name))
        actions += (do.Dismiss(hand.name),)
    if now >= state.hire_at:
        for _ in range(wanted - len(staying)):
            hand = Hand(f"{state.group}-{state.serial}")
            state = replace(state, workers=(*state.workers, hand), serial=state.serial + 1)
            actions += (do.Hire(hand.name),)
    return state, actions


def _next_members(state: GroupState, now: float) -> list[str] | None:
    """Who shall be in the next epoch, by rank; None when none is due."""
    spares, starting = state.at(Stage.SPARE), state.at(Stage.STARTING)
    members = [h for h in state.members if h.stage in (Stage.MEMBER, Stage.LEAVING)]
    room = max(0, state.ep_size - sum(h.stage is Stage.MEMBER for h in members))
    if state.spec is None:
        return [h.name for h in spares[:room]] if len(spares) >= state.ep_size else None
    gone = [h for h in members if h.stage is Stage.LEAVING and now >= h.leave_by]
    if not starting and all(not h.busy or h in gone for h in members if h.stage is Stage.LEAVING):
        gone = [h for h in members if h.stage is Stage.LEAVING]
    if state.broken:
        names = [h.name for h in (*(h for h in members if h not in gone), *spares[:room])]
        return names if len(names) > state.scarce else None
    joining = spares[:room] if len(spares) >= room or not starting else ()
    if not (joining or gone or state.placement):
        return None
    return [h.name for h in (*(h for h in members if h not in gone), *joining)]


def _next_spec(state: GroupState, names: list[str]) -> GroupSpec:
    hands = [state.hand(name) for name in names]
    facts = [h.facts for h in hands if h is not None and h.facts is not None]
    assert len(facts) == len(names), f"{names} are not all prepared"
    members = tuple(Member(rank, f.worker_id, f.address) for rank, f in enumerate(facts))
    layers, experts = facts[0].num_layers, facts[0].num_experts
    if state.placement is not None and state.spec is not None and tuple(names) == _names(state.spec):
        placement = state.placement
    elif state.spec is not None:
        ranks = {m.worker_id: m.rank for m in state.spec.members}
        placement = moved_placement(state.spec.placement, [ranks.get(name) for name in names])
    else:
        placement = even_placement(layers, experts, len(names))
    givers = [h.facts.address for h in state.at(Stage.MEMBER, Stage.LEAVING) if h.facts is not None]
    return GroupSpec(
        state.group, state.epoch + 1, state.policy.store_host, 0, members, placement, tuple(givers), state.serial
    )


# -- small things -----------------------------------------------------------------------------------------------------


def _leave(state: GroupState, hand: Hand, now: float) -> Step:
    by = now + state.policy.drain_timeout
    state = _put(state, replace(hand, stage=Stage.LEAVING, busy=True, leave_by=by))
    return state, (do.Drain(hand.name, True), do.Remind(by))


def _stay(state: GroupState) -> Step:
    """Nobody leaves after all: the others could not hold what they hold."""
    leaving = state.at(Stage.LEAVING)
    for hand in leaving:
        state = _put(state, replace(hand, stage=Stage.MEMBER))
    return replace(state, ep_size=len(state.members)), tuple(do.Drain(h.name, False) for h in leaving)


def _abandoned(state: GroupState) -> GroupState:
    """The epoch being entered will not be; the one before is over too."""
    return replace(state, change=None, broken=state.spec is not None)


def _give_up(state: GroupState, reason: str) -> Step:
    return replace(state, phase=Phase.FAILED, change=None, reason=reason), (do.Release(grace=0.0),)


def _put(state: GroupState, hand: Hand) -> GroupState:
    if state.hand(hand.name) is None:
        return replace(state, workers=(*state.workers, hand))
    return replace(state, workers=tuple(hand if h.name == hand.name else h for h in state.workers))


def _patience(first: float, failures: int, most: float) -> float:
    """Seconds until the next attempt: twice as long after each failure. It may fail for months."""
    return min(most, first * 2.0 ** min(failures, 30))


def _names(spec: GroupSpec) -> tuple[str, ...]:
    return tuple(m.worker_id for m in spec.members)


def _missing(state: GroupState) -> str:
    names = ", ".join(h.name for h in state.at(Stage.STARTING))
    return f": waiting for {names}" if names else ""
