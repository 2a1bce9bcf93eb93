"""The journal of running requests, in a real Redis."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest
import redis.asyncio
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.cluster.embedded_redis import EmbeddedRedis
from shoal.proto.v1 import inference_pb2 as api
from shoal.proto.v1.journal_pb2 import JournalTokens, KeptPiece
from shoal.proto.v1.worker_pb2 import SEQUENCE_FINISH_LENGTH
from shoal.router.errors import (
    JournalFullError,
    JournalGapError,
    RequestAbsentError,
    RequestHeldError,
    RequestOverError,
    SessionsAwayError,
    TakenOverError,
    WireError,
)
from shoal.router.journal.journal import Journal
from shoal.router.journal.lease import JournalLimits, Lease
from shoal.router.sessions.redis_store import connect
from tests.router.journal.conftest import ids_of, record, tokens


@pytest.fixture
async def lease(journal: Journal) -> Lease:
    """An accepted request of ours."""
    return await journal.accept(record(), "ours", seconds=60)


async def test_what_was_accepted_is_read_as_it_was_written(journal: Journal) -> None:
    """Every field of the record survives."""
    written = record(
        chat=api.ChatRequest(session_id="s", messages=[api.Message(content="hé 🙂")]),
        prompt=[KeptPiece(ids=[1, 2, 3], generated_first=1, generated_last=2, lasting=True)],
        seed=2**64 - 1,
    )
    await journal.accept(written, "ours", seconds=60)
    view = await journal.read("t", "w")

    assert view is not None
    assert written == view.record
    assert (1, "ours", "running", False, (), 0) == (
        view.attempt, view.owner, view.state, view.orphaned, view.tokens, view.next,
    )  # fmt: skip


async def test_accepting_twice_counts_once(journal: Journal, lease: Lease) -> None:
    """A router that lost the answer may ask again; nobody else can have the name."""
    assert lease == await journal.accept(record(), "ours", seconds=60)
    with pytest.raises(RequestHeldError):
        await journal.accept(record(), "another", seconds=60)


async def test_tokens_are_read_from_a_place_on(journal: Journal, lease: Lease) -> None:
    """A reader gets everything once, then only what is new."""
    await journal.append(lease, [tokens(0, 5, 6, logprobs=[-1.0, -2.0]), tokens(2, 7)])
    first = await journal.read("t", "w")
    await journal.append(lease, [tokens(3, 8, finish=SEQUENCE_FINISH_LENGTH)])
    assert first is not None
    second = await journal.read("t", "w", after=first.next)

    assert [[5, 6], [7]] == [list(entry.ids) for entry in first.tokens]
    assert [-1.0, -2.0] == list(first.tokens[0].logprobs)
    assert second is not None
    assert second.record is None
    assert [([8], SEQUENCE_FINISH_LENGTH)] == [(list(entry.ids), entry.finish) for entry in second.tokens]
    assert second.next == 3


async def test_choices_and_rounds_are_numbered_by_themselves(journal: Journal, lease: Lease) -> None:
    """Each round of each choice begins with offset 0 and joins on its own."""
    entries = [tokens(0, 1), tokens(0, 2, choice=1), tokens(1, 3), tokens(0, 4, round=1), tokens(1, 5, choice=1)]
    await journal.append(lease, entries)

    assert [[1, 3], [2, 5], [4]] == [
        await ids_of(journal), await ids_of(journal, choice=1), await ids_of(journal, round_=1),
    ]  # fmt: skip


async def test_what_is_known_is_not_stored_again(journal: Journal, lease: Lease) -> None:
    """A writer that lost the answer may write again, one entry or all."""
    for _ in range(2):
        await journal.append(lease, [tokens(0, 1, 2)])
        await journal.append(lease, [tokens(2, 3, finish=SEQUENCE_FINISH_LENGTH)])

    assert [1, 2, 3] == await ids_of(journal)


@pytest.mark.parametrize("entry", [tokens(3, 9), tokens(1, 9, 9), tokens(7, 9)])
async def test_a_gap_or_an_overlap_is_refused(journal: Journal, lease: Lease, entry: JournalTokens) -> None:
    """Only what follows the last token is taken."""
    await journal.append(lease, [tokens(0, 1, 2)])
    with pytest.raises(JournalGapError, match="2 tokens"):
        await journal.append(lease, [entry])

    assert [1, 2] == await ids_of(journal)


async def test_nothing_follows_the_end_of_a_round(journal: Journal, lease: Lease) -> None:
    """After its last tokens a round takes no more."""
    await journal.append(lease, [tokens(0, 1, finish=SEQUENCE_FINISH_LENGTH)])
    with pytest.raises(JournalGapError):
        await journal.append(lease, [tokens(1, 2)])


@pytest.mark.parametrize("late", [{"tried": 2, "epoch": 3}, {"tried": 1, "epoch": 9}])
async def test_an_older_epoch_is_refused(journal: Journal, lease: Lease, late: dict[str, int]) -> None:
    """Tokens of a membership that is over, or of a worker that was given up, do not get in any more."""
    await journal.append(lease, [tokens(0, 1, tried=2, epoch=4), tokens(0, 1, choice=1, tried=1, epoch=1)])
    with pytest.raises(TakenOverError, match="try 2, epoch 4"):
        await journal.append(lease, [tokens(1, 2, **late)])

    assert [1] == await ids_of(journal)


async def test_the_next_try_counts_epochs_anew(journal: Journal, lease: Lease) -> None:
    """It may run in another group; so may the next attempt."""
    await journal.append(lease, [tokens(0, 1, tried=2, epoch=4)])
    await journal.append(lease, [tokens(1, 2, tried=3, epoch=1)])
    second = await journal.take_over("t", "w", "ours", orphaned=False)
    await journal.append(second, [tokens(2, 3, tried=1, epoch=1)])

    assert [1, 2, 3] == await ids_of(journal)


async def test_the_late_writer_is_fenced(journal: Journal, lease: Lease) -> None:
    """After a take-over the former owner can write nothing, whatever it tries, and the new one goes on."""
    await journal.append(lease, [tokens(0, 1)])
    ours = await journal.take_over("t", "w", "another", orphaned=False)
    for attempt in (
        journal.append(lease, [tokens(1, 2)]),
        journal.append(lease, [tokens(0, 1)]),
        journal.note(lease, "tool:1", b"x"),
        journal.renew(lease),
        journal.release(lease),
        journal.finish(lease),
    ):
        with pytest.raises(TakenOverError):
            await attempt
    await journal.append(ours, [tokens(1, 3)])
    view = await journal.read("t", "w")

    assert view is not None
    assert (2, "another", "running", {}) == (view.attempt, view.owner, view.state, view.notes)
    assert [1, 3] == await ids_of(journal)
    assert [1, 2] == [entry.attempt for entry in view.tokens]


async def test_of_many_who_take_over_one_wins(journal: Journal, lease: Lease) -> None:
    """Who names the attempt that he saw gets it, or learns that another was faster."""
    tries = (journal.take_over("t", "w", f"r{i}", attempt=1, orphaned=False) for i in range(10))
    outcomes = await asyncio.gather(*tries, return_exceptions=True)

    assert 9 == sum(isinstance(outcome, TakenOverError) for outcome in outcomes)


async def test_a_living_owner_keeps_its_request(journal: Journal, lease: Lease) -> None:
    """Its lease is prolonged by every write; only when it is silent, or lets go, the request is an orphan."""
    for offset in range(4):
        await asyncio.sleep(0.06)
        await journal.append(lease, [tokens(offset, offset)])
    with pytest.raises(RequestHeldError) as held:
        await journal.take_over("t", "w", "another")
    assert 0 < (held.value.retry_after_ms or 0) <= 150
    await asyncio.sleep(0.2)
    view = await journal.read("t", "w")
    assert view is not None
    assert view.orphaned
    taken = await journal.take_over("t", "w", "another")
    await journal.renew(taken)
    await journal.release(taken)

    assert 3 == (await journal.take_over("t", "w", "third")).attempt


async def test_a_fact_is_what_was_written_first(journal: Journal, lease: Lease) -> None:
    """The second writer of a name learns the first one's value: so an unfinished tool call is not run twice."""
    assert b"first" == await journal.note(lease, "tool:call_1", b"first")
    second = await journal.take_over("t", "w", "another", orphaned=False)

    assert b"first" == await journal.note(second, "tool:call_1", b"second")
    view = await journal.read("t", "w", after=0)
    later = await journal.read("t", "w", after=1)
    assert view is not None
    assert later is not None
    assert {"tool:call_1": b"first"} == view.notes == later.notes


async def test_an_ended_request_takes_nothing_more(journal: Journal, lease: Lease) -> None:
    """It can be read for a while, with how it ended; ending it twice counts once."""
    await journal.append(lease, [tokens(0, 1)])
    for _ in range(2):
        await journal.finish(lease, "no worker", failed=True)
    for attempt in (
        journal.append(lease, [tokens(1, 2)]),
        journal.note(lease, "n", b""),
        journal.renew(lease),
        journal.finish(lease),
        journal.take_over("t", "w", "another", orphaned=False),
    ):
        with pytest.raises(RequestOverError):
            await attempt
    view = await journal.read("t", "w")

    assert view is not None
    assert ("failed", "no worker", False) == (view.state, view.outcome, view.orphaned)


async def test_what_is_kept_is_bounded(journal: Journal, lease: Lease) -> None:
    """At the bound the journal takes no more and stays readable."""
    many = [tokens(offset, *([100_000] * 1000)) for offset in range(0, 10_000, 1000)]
    with pytest.raises(JournalFullError):
        await journal.append(lease, many)
    with pytest.raises(JournalFullError):
        await journal.note(lease, "n", b"x" * 20_000)

    assert 6000 == len(await ids_of(journal))


async def test_everything_expires(client: redis.asyncio.Redis) -> None:
    """No key of a request lives for ever: running, until its deadline and a while; ended, for a while."""
    journal = Journal(client, JournalLimits(keep_seconds=5.0))
    lease = await journal.accept(record(request_id="mine"), "ours", seconds=100)
    await journal.append(lease, [tokens(0, 1)])
    running = [await client.ttl(key) for key in await client.keys("*")]
    await journal.finish(lease)
    ended = [await client.ttl(key) for key in await client.keys("shoal:request:*")]

    assert 3 == len(running)
    assert all(100 < ttl <= 105 for ttl in running)
    assert 2 == len(ended)
    assert all(0 < ttl <= 5 for ttl in ended)


async def test_a_request_is_found_by_its_callers_name(journal: Journal) -> None:
    """By the caller's name the latest, by ours the one; in the caller's own tenant only."""
    await journal.accept(record("w1", request_id="mine"), "ours", seconds=60)
    await journal.accept(record("w2", request_id="mine"), "ours", seconds=60)

    assert ["w2", "w1"] == [await journal.find("t", "mine"), await journal.find("t", "w1")]
    for tenant, name in (("other", "mine"), ("other", "w1"), ("t", "nothing")):
        with pytest.raises(RequestAbsentError):
            await journal.find(tenant, name)


async def test_tenants_do_not_meet(journal: Journal, lease: Lease) -> None:
    """Another tenant's request is not told from one that never was."""
    assert await journal.read("other", "w") is None
    with pytest.raises(RequestAbsentError):
        await journal.take_over("other", "w", "x", orphaned=False)
    with pytest.raises(RequestAbsentError):
        await journal.append(Lease("other", "w", 1, "ours"), [tokens(0, 1)])


async def test_forgetting_leaves_nothing(journal: Journal, client: redis.asyncio.Redis, lease: Lease) -> None:
    """No key is left behind, and the former owner learns it."""
    await journal.append(lease, [tokens(0, 1)])
    await journal.forget("t", "w")

    assert [] == await client.keys("*")
    with pytest.raises(RequestAbsentError):
        await journal.append(lease, [tokens(1, 2)])


async def test_many_requests_are_written_in_one_round_trip(journal: Journal, client: redis.asyncio.Redis) -> None:
    """Each gets its own outcome: one request's refusal does not touch the others. Scripts the server does not know are
    no obstacle."""
    leases = [await journal.accept(record(f"w{i}"), "ours", seconds=60) for i in range(3)]
    await journal.finish(leases[1])
    await client.script_flush()
    outcomes = await journal.append_all([(lease, [tokens(0, 1), tokens(1, 2)]) for lease in leases])

    assert [None, RequestOverError, None] == [outcome and type(outcome) for outcome in outcomes]
    assert [[1, 2], [], [1, 2]] == [await ids_of(journal, f"w{i}") for i in range(3)]


async def test_without_redis_everything_says_so() -> None:
    """Every method raises the same error, with a hint."""
    client = connect("unix:///nowhere/redis.sock")
    journal, lease = Journal(client), Lease("t", "w", 1, "ours")
    for attempt in (
        journal.accept(record(), "ours", seconds=1),
        journal.append(lease, [tokens(0, 1)]),
        journal.note(lease, "n", b""),
        journal.read("t", "w"),
        journal.find("t", "w"),
        journal.take_over("t", "w", "x"),
        journal.renew(lease),
        journal.finish(lease),
    ):
        with pytest.raises(SessionsAwayError) as caught:
            await attempt
        assert caught.value.retry_after_ms
    await client.aclose()


@given(
    cuts=st.lists(st.integers(1, 4), min_size=1, max_size=8),
    steps=st.lists(st.tuples(st.sampled_from(["first", "second", "take"]), st.integers(0, 7)), max_size=24),
)
@settings(max_examples=40)
def test_no_order_of_writes_makes_a_wrong_sequence(
    redis_server: EmbeddedRedis, cuts: list[int], steps: list[tuple[str, int]]
) -> None:
    """Two routers that send their batches late, twice, out of order, with a take-over somewhere between: what is in
    the journal is always a prefix of the one sequence, and the last owner can always complete it."""

    async def play() -> list[int]:
        client = connect(redis_server.url)
        try:
            return await _play(Journal(client), cuts, steps)
        finally:
            await client.aclose()

    assert list(range(sum(cuts))) == asyncio.run(play())


async def _play(journal: Journal, cuts: Sequence[int], steps: Sequence[tuple[str, int]]) -> list[int]:
    await journal.forget("t", "w")
    leases = {"first": await journal.accept(record(), "first", seconds=60)}
    batches, offset = [], 0
    for cut in cuts:
        batches.append(tokens(offset, *range(offset, offset + cut)))
        offset += cut
    for who, which in steps:
        if who == "take":
            leases["second"] = await journal.take_over("t", "w", "second", orphaned=False)
        elif who in leases and which < len(batches):
            (outcome,) = await journal.append_all([(leases[who], [batches[which]])])
            late = who == "first" and "second" in leases
            assert isinstance(outcome, TakenOverError) if late else isinstance(outcome, WireError | None)
        found = await ids_of(journal)
        assert list(range(len(found))) == found
    owner = leases.get("second", leases["first"])
    await journal.append(owner, batches)
    return await ids_of(journal)
