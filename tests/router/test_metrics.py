"""What a router counts."""

from __future__ import annotations

import pytest
from prometheus_client import generate_latest

from shoal.router.metrics import MOST_TENANTS, OTHERS, Metrics
from shoal.router.sessions.timed import timed
from shoal.router.tally import CURRENT, Tally
from shoal.router.waiting_line import WaitingLine


def scrape(metrics: Metrics) -> dict[str, float]:
    """Every sample by its name and labels."""
    lines = generate_latest(metrics.registry).decode().splitlines()
    return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines if not line.startswith("#")}


def test_tokens_are_in_flight_until_their_request_ends() -> None:
    """Prompt and output of running requests, and of none that ended."""
    metrics, tally = Metrics(), Tally()
    CURRENT.set(tally)
    metrics.tokens_in.inc(10)
    metrics.meter(0.0, lambda: 1.0).tokens(3)
    assert 13 == scrape(metrics)["shoal_router_tokens_in_flight"]
    tally.reasoning, tally.cached = 2, 8
    metrics.settle(tally, "fish")
    after = scrape(metrics)
    assert 0 == after["shoal_router_tokens_in_flight"]
    assert (2, 8) == (after["shoal_router_reasoning_tokens_total"], after["shoal_router_cached_tokens_total"])
    assert 10 == after['shoal_router_tenant_tokens_total{kind="input",tenant="fish"}']
    assert 3 == after['shoal_router_tenant_tokens_total{kind="output",tenant="fish"}']
    CURRENT.set(None)


def test_ten_thousand_tenants_are_a_bounded_number_of_series() -> None:
    """The first have names; the rest is one."""
    metrics = Metrics()
    for number in range(10_000):
        metrics.settle(Tally(prompt=1), f"tenant-{number}")
    named = [key for key in scrape(metrics) if key.startswith("shoal_router_tenant_requests_total")]
    assert MOST_TENANTS + 1 == len(named)
    assert 10_000 - MOST_TENANTS == scrape(metrics)[f'shoal_router_tenant_requests_total{{tenant="{OTHERS}"}}']
    metrics.settle(Tally(), "tenant-0")
    assert 2 == scrape(metrics)['shoal_router_tenant_requests_total{tenant="tenant-0"}']


def test_the_first_in_line_says_how_long_the_line_is() -> None:
    """Nobody waits: none; who was let in does not count, nor who went away."""
    now = 10.0
    line = WaitingLine(lambda: now)
    assert 0.0 == line.oldest
    with line.joined() as leave:
        now = 12.0
        with line.joined():
            now = 13.0
            assert 3.0 == line.oldest
            leave()
            assert 1.0 == line.oldest
    assert 0.0 == line.oldest


def test_those_who_still_wait_count_with_what_they_waited() -> None:
    """Else a router whose requests get nothing at all would look idle; who went away without it is not counted, and
    what is long ago is forgotten."""
    now = 0.0
    line = WaitingLine(lambda: now)
    with line.joined() as served:
        now = 1.0
        served()
        served()
    with line.joined():
        pass
    assert (1, 1.0) == line.felt(5.0)
    with line.joined():
        now = 4.0
        assert (2, 3.0) == line.felt(5.0)
        now = 7.0
        assert (1, 6.0) == line.felt(5.0)
    assert (0, 0.0) == line.felt(5.0)


def test_the_first_token_of_any_choice_ends_the_wait_for_it() -> None:
    """It is told once."""
    metrics, told = Metrics(), []
    CURRENT.set(Tally(on_first=lambda: told.append(1)))
    for _ in range(2):
        metrics.meter(0.0, lambda: 1.0).tokens(2)
    CURRENT.set(None)
    assert [1] == told


async def test_calls_of_the_store_are_timed_by_name_and_outcome() -> None:
    """Those that fail too."""

    class Store:
        async def load(self, tenant: str, session_id: str) -> str:
            if not tenant:
                raise ValueError("no tenant")
            return session_id

    metrics = Metrics()
    store = timed(Store(), metrics.store_time)  # type: ignore[arg-type]  # one method is enough here
    await store.load("t", "s")
    with pytest.raises(ValueError, match="no tenant"):
        await store.load("", "s")
    counts = scrape(metrics)
    for outcome in ("ok", "error"):
        assert 1 == counts[f'shoal_router_session_store_seconds_count{{operation="load",outcome="{outcome}"}}']
