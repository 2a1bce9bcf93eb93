"""Looking at a cluster that is not well."""

from __future__ import annotations

import redis

from shoal.cluster.client import health
from shoal.cluster.commands.status import autoscale_words, look, read_autoscale, read_registry
from shoal.wire.load import AUTOSCALE_KEY, AutoscaleEntry
from shoal.wire.registry import GROUPS_KEY, GroupEntry, WorkerEntry, encode, group_key

NOBODY = "127.0.0.1:9"
"""The discard port: nothing of ours ever listens there."""


def test_a_router_that_is_away_is_unreachable() -> None:
    """An answer in words, not an exception."""
    assert health(NOBODY, timeout=1.0) == "UNREACHABLE"


def test_a_registry_that_is_away_is_a_problem_in_words() -> None:
    """Status is asked for when things are broken."""
    problem, entries = read_registry("unix:///nowhere/redis.sock")
    assert problem.startswith("ConnectionError: ")
    assert entries == []


def test_a_dead_worker_makes_its_group_not_ready(redis_url: str) -> None:
    """Whatever the record says: nobody answers at its address."""
    entry = GroupEntry("g0", 4, True, (WorkerEntry("g0-0", 0, NOBODY),))
    with redis.Redis.from_url(redis_url) as client:
        client.sadd(GROUPS_KEY, "g0")
        client.set(group_key("g0"), encode(entry))
    report = look(NOBODY, redis_url)
    assert not report["healthy"]
    assert report["router"]["inference"] == "UNREACHABLE"
    (group,) = report["groups"]
    assert (group["epoch"], group["ready"]) == (4, False)
    assert group["workers"][0] == {
        "rank": 0, "worker_id": "g0-0", "address": NOBODY, "ready": False, "reachable": False,
    }  # fmt: skip


def test_an_unreadable_record_is_a_problem_in_words(redis_url: str) -> None:
    """Another program's key under our name is told, not raised."""
    with redis.Redis.from_url(redis_url) as client:
        client.sadd(GROUPS_KEY, "g0")
        client.set(group_key("g0"), b"{}")
    problem, _ = read_registry(redis_url)
    assert problem.startswith("ValueError: registry record is not readable")


def test_what_the_autoscaler_decided_last_is_told(redis_url: str) -> None:
    """And why, and what keeps it from deciding now; without one nothing is said of it."""
    assert None is look(NOBODY, redis_url)["autoscale"]
    entry = AutoscaleEntry(3, 1, 4, 0.25, 0.5, 1.5, "group g2 starts", 2, 3, "queue at 2.0 of its target", 1.0)
    with redis.Redis.from_url(redis_url) as client:
        client.set(AUTOSCALE_KEY, entry.encode())
    assert entry == read_autoscale(redis_url)
    words = autoscale_words(entry)
    assert words.startswith("autoscale: 3 groups of 1 to 4; queue 0.25 s, KV 50%, first token 1.50 s; last: 2 -> 3 at ")
    assert words.endswith(": queue at 2.0 of its target; now: group g2 starts")
    assert 3 == look(NOBODY, redis_url)["autoscale"]["groups"]
    assert None is read_autoscale("unix:///nowhere/redis.sock")


def test_an_autoscaler_is_asked_for_by_any_kind_of_url() -> None:
    """Sentinels that are away say nothing; their URL is no mistake."""
    assert read_autoscale("redis+sentinel://127.0.0.1:9/shoal") is None
