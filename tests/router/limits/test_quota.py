"""Quotas over real Redis, without it, and as callers meet them."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
import redis.asyncio
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.proto.v1 import inference_pb2 as api
from shoal.proto.v1 import worker_pb2 as pb
from shoal.router.access.caller import Caller
from shoal.router.access.key import Key
from shoal.router.errors import PromptTooLongError, QuotaError, StartError
from shoal.router.fleet.scripted_worker import Action, Hang, Say, doing, saying
from shoal.router.front import _limits_of
from shoal.router.limits.backoff import Backoff
from shoal.router.limits.bucket import Bucket
from shoal.router.limits.config import LimitsConfig
from shoal.router.limits.ledger import RedisLedger, Refused, Scope
from shoal.router.limits.policy import Policies, Policy, PolicyError, read_policies
from shoal.router.limits.quota import Quotas
from tests.router.access.showing import Ring, make_key, write_keys
from tests.router.conftest import StartCluster, StartRouter
from tests.router.http.asking import HELLO, ask
from tests.router.talking import events_of, failed, trailing, until

ACME = Caller("acme", "user", "k")


def quotas(shared: RedisLedger | None, **limits: Any) -> Quotas:
    """With the same limits for everybody."""
    config = LimitsConfig(**{"tolerance": 10_000, **limits})
    return Quotas(config, Policies(config), shared, time.monotonic)


async def granted(quota: Quotas, number: int, tokens: int = 0) -> int:
    """Of so many requests, one after the other."""
    count = 0
    for _ in range(number):
        try:
            async with quota.allowed(ACME, secrets.token_hex(8), None) as allowance:
                if tokens:
                    await allowance.prompt(tokens, 0)
                count += 1
        except QuotaError:
            pass
    return count


async def test_four_routers_grant_exactly_what_one_limit_allows(redis_url: str) -> None:
    """Sixteen clients at each of four routers ask at once for far more than there is: a hundred pass, none too many."""
    clients = [redis.asyncio.Redis.from_url(redis_url) for _ in range(4)]
    routers = [quotas(RedisLedger(client), requests_per_minute=100) for client in clients]
    began = time.monotonic()
    counts = await asyncio.gather(*(granted(router, 5) for router in routers for _ in range(16)))
    refilled = int((time.monotonic() - began) * 100 / 60)
    for client in clients:
        await client.aclose()

    assert 100 <= sum(counts) <= 100 + refilled


async def test_tokens_are_never_granted_twice(redis_url: str) -> None:
    """The same for tokens, prompts and outputs together."""
    clients = [redis.asyncio.Redis.from_url(redis_url) for _ in range(4)]
    routers = [quotas(RedisLedger(client), tokens_per_minute=10_000) for client in clients]
    began = time.monotonic()
    counts = await asyncio.gather(*(granted(router, 10, tokens=100) for router in routers for _ in range(4)))
    refilled = int((time.monotonic() - began) * 10_000 / 60 / 100) + 1
    for client in clients:
        await client.aclose()

    assert 100 <= sum(counts) <= 100 + refilled


async def test_a_refusal_says_what_and_when(client: redis.asyncio.Redis) -> None:
    """One request a minute: the second may come in a minute."""
    quota = quotas(RedisLedger(client), requests_per_minute=1)
    assert await granted(quota, 1) == 1
    with pytest.raises(QuotaError, match="requests per minute") as caught:
        async with quota.allowed(ACME, "second", None):
            pass

    assert 55_000 < (caught.value.retry_after_ms or 0) <= 60_000


async def test_what_was_set_aside_and_not_used_is_given_back(client: redis.asyncio.Redis) -> None:
    """A request that wanted a thousand tokens and took ten costs ten, also when it was cancelled."""
    quota = quotas(RedisLedger(client), tokens_per_minute=2000)
    for lease in "abcdefgh":
        async with quota.allowed(ACME, lease, None) as allowance:
            await allowance.prompt(100, 5000)
            await allowance.output(10)
    with pytest.raises(QuotaError, match="tokens per minute"):
        async with quota.allowed(ACME, "last", None) as allowance:
            await allowance.prompt(600, 5000)


async def test_a_stream_is_stopped_when_no_more_tokens_can_be_had(client: redis.asyncio.Redis) -> None:
    """What is set aside is extended as it goes on, until nothing is left; never more than one step is owed."""
    quota = quotas(RedisLedger(client), tokens_per_minute=1000, reserve_tokens=100)
    told = 0

    async def stream() -> None:
        nonlocal told
        async with quota.allowed(ACME, "long", None) as allowance:
            await allowance.prompt(100, 100_000)
            for _ in range(200):
                await allowance.output(told + 10)
                told += 10

    with pytest.raises(QuotaError, match="tokens per minute"):
        await stream()

    assert 900 - 100 <= told <= 950


async def test_places_are_given_back_however_a_request_ends(client: redis.asyncio.Redis) -> None:
    """Well, with an error, cancelled: afterwards there is room for as many as before."""
    quota = quotas(RedisLedger(client), concurrent=3, requests_per_minute=100_000)

    async def hold(lease: str) -> None:
        async with quota.allowed(ACME, lease, None):
            await asyncio.sleep(30)

    for round_ in range(3):
        tasks = [asyncio.create_task(hold(f"{round_}-{n}")) for n in range(3)]
        await asyncio.sleep(0.05)
        with pytest.raises(QuotaError, match="at once"):
            await hold("fourth")
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    with pytest.raises(ZeroDivisionError):
        async with quota.allowed(ACME, "broken", None):
            raise ZeroDivisionError

    assert await client.zcard("shoal:quota:{acme}::running") == 0


async def test_a_dead_routers_places_are_free_after_a_while(
    client: redis.asyncio.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A lease that nobody renews ends; one that is renewed does not."""
    monkeypatch.setattr("shoal.router.limits.ledger.LEASE_MS", 200)
    ledger, scopes = RedisLedger(client), (Scope("", 0, 0, 2),)
    for lease in ("dead", "alive"):
        assert not isinstance(await ledger.begin("t", scopes, lease), Refused)
    for _ in range(3):
        await asyncio.sleep(0.1)
        await ledger.renew("t", scopes, "alive")

    assert not isinstance(await ledger.begin("t", scopes, "new"), Refused)
    refused = await ledger.begin("t", scopes, "newer")
    assert isinstance(refused, Refused)
    assert refused.what == "requests at once"


async def test_a_key_has_limits_of_its_own_within_the_tenants(client: redis.asyncio.Redis) -> None:
    """Used up by a key, not by the tenant; another key of the tenant goes on."""
    quota = quotas(RedisLedger(client), requests_per_minute=10)
    small, passed, refusals = Scope("small", 2, 0, 0), 0, list[str]()
    for n in range(5):
        try:
            async with quota.allowed(Caller("acme", "user", "small"), f"s{n}", small):
                passed += 1
        except QuotaError as error:
            refusals.append(error.message)
    assert passed == 2
    assert all("this key" in message for message in refusals)
    assert await granted(quota, 20) == 8


async def test_a_prompt_beyond_the_tenants_context_is_refused() -> None:
    """By its tokens, whatever the model could take."""
    quota = quotas(None, max_context=100)
    async with quota.allowed(ACME, "a", None) as allowance:
        await allowance.prompt(99, 10)
        with pytest.raises(PromptTooLongError):
            await allowance.prompt(100, 10)


@pytest.mark.parametrize(("tenants", "keys"), [(0, 100), (1000, 100), (100, 1000)])
async def test_a_key_may_have_a_smaller_context_than_its_tenant(tenants: int, keys: int) -> None:
    """Never a larger one; and it is enough of a limit for a key to have."""
    quota, key = quotas(None, max_context=tenants), _limits_of(Key("k", "acme", "user", "digest", max_context=keys))
    async with quota.allowed(ACME, "a", key) as allowance:
        await allowance.prompt(99, 10)
        with pytest.raises(PromptTooLongError):
            await allowance.prompt(100, 10)


async def test_a_key_that_is_refused_again_and_again_is_held_off() -> None:
    """Also when it could have been served by then, for a while."""
    config, clock = LimitsConfig(requests_per_minute=60, tolerance=5), [0.0]
    quota = Quotas(config, Policies(config), None, lambda: clock[0])
    for n in range(75):
        try:
            async with quota.allowed(ACME, str(n), None):
                pass
        except QuotaError:
            pass
    clock[0] += 1.5  # one more would be there
    with pytest.raises(QuotaError, match="held off"):
        async with quota.allowed(ACME, "again", None):
            pass
    clock[0] += 120.0
    async with quota.allowed(ACME, "later", None):
        pass


@settings(max_examples=50)
@given(st.lists(st.floats(0.0, 30.0), max_size=30))
def test_back_off_never_lasts_longer_than_it_may_and_fades(gaps: list[float]) -> None:
    """Whatever the refusals, it ends; and who is good for a while begins anew."""
    backoff, now = Backoff(3, 20.0), 0.0
    for gap in gaps:
        now += gap
        backoff.strike("k", now)
        assert backoff.held("k", now) <= 20.0 + 1e-9
        assert backoff.held("other", now) == 0.0
    assert backoff.held("k", now + 20.001) == 0.0
    backoff.strike("k", now + 100.0)
    assert backoff.held("k", now + 100.0) == 0.0


@given(st.integers(1, 1000), st.lists(st.tuples(st.integers(0, 5000), st.integers(1, 300)), max_size=40))
def test_a_bucket_never_gives_more_than_a_minute_and_what_flowed_in(
    per_minute: int, asks: list[tuple[int, int]]
) -> None:
    """Over any time: at most the whole bucket and what filled it meanwhile; and a wait that is told is long enough."""
    bucket, now, taken = Bucket.full(per_minute, 0), 0, 0
    for gap, amount in asks:
        now += gap
        if amount > per_minute:
            continue
        if not (waits := bucket.wait(amount, now)):
            bucket.take(amount, now)
            taken += amount
        else:
            assert bucket.wait(amount, now + waits) == 0
        assert taken <= per_minute + now * per_minute / 60_000 + 1e-6


async def test_callers_are_told_when_to_come_back(start_cluster: StartCluster, tmp_path: Path, redis_url: str) -> None:
    """gRPC: RESOURCE_EXHAUSTED with a push-back; HTTP: 429 with Retry-After; another tenant is not refused."""
    ring, other, other_shown = Ring(tmp_path), *make_key("other", "user")
    write_keys(ring.file, *ring.keys.values(), other)
    limits = LimitsConfig(enforced=True, requests_per_minute=2)
    cluster = await start_cluster(
        saying([1]), access=ring.config(), limits=limits, http_port=0, model_name="model", redis_url=redis_url
    )
    stub: Any = cluster.front.inference

    def generate(shown: str) -> Any:
        return stub.Generate(api.GenerateRequest(text="x"), metadata=(("authorization", f"Bearer {shown}"),))

    for _ in range(2):
        await events_of(generate(ring.shown["user"]))
    _, error = await failed(generate(ring.shown["user"]))
    answer = await ask(
        cluster.front.listening.http, "/v1/chat/completions", HELLO, authorization=f"Bearer {ring.shown['admin']}"
    )
    await events_of(generate(other_shown))

    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert trailing(error)["shoal-reason"] == "quota"
    assert 20_000 < int(trailing(error)["grpc-retry-pushback-ms"]) <= 30_000
    assert answer.status == 429
    assert 20 <= int(answer.headers["retry-after"]) <= 30


async def test_a_noisy_tenant_does_not_delay_a_quiet_one(start_cluster: StartCluster, tmp_path: Path) -> None:
    """Behind a full router the quiet tenant's request is at most the second to reach a worker."""
    keys = [make_key("noisy", "user"), make_key("quiet", "user")]
    write_keys(tmp_path / "keys.json", *(key for key, _ in keys))
    ring = Ring(tmp_path)
    write_keys(ring.file, *(key for key, _ in keys))
    going = asyncio.Event()

    async def script(submit: pb.Submit) -> AsyncIterator[Action]:
        await going.wait()
        yield Say((1,), pb.SEQUENCE_FINISH_LENGTH)

    cluster = await start_cluster(script, access=ring.config(), max_running=2, max_waiting=100)
    stub: Any = cluster.front.inference

    def generate(index: int, name: str) -> Any:
        request = api.GenerateRequest(text="long " * 200 if index == 0 else "short", request_id=name)
        return stub.Generate(request, metadata=(("authorization", f"Bearer {keys[index][1]}"),))

    noisy = [asyncio.create_task(events_of(generate(0, f"n{n}"))) for n in range(40)]
    await until(lambda: cluster.front.router.admission.waiting == 38)
    quiet = asyncio.create_task(events_of(generate(1, "quiet")))
    await until(lambda: cluster.front.router.admission.waiting == 39)
    going.set()
    await asyncio.gather(quiet, *noisy)
    after = [len(submit.prompt[0].ids) for submit in cluster.worker.submits[2:]]

    assert min(after) in after[:2]
    assert cluster.front.router.admission.waiting == 0


async def test_a_cancelled_stream_gives_its_place_back(
    start_cluster: StartCluster, redis_url: str, client: redis.asyncio.Redis
) -> None:
    """Fifty streams are cut off by their clients; nothing of their quota is left behind."""
    limits = LimitsConfig(enforced=True, concurrent=2, tokens_per_minute=100_000)
    cluster = await start_cluster(doing(Say((1,)), Hang()), limits=limits, redis_url=redis_url)
    for _ in range(50):
        call: Any = cluster.front.inference.Generate(api.GenerateRequest(text="x"))
        await anext(aiter(call))
        call.cancel()
        for _ in range(200):
            if not await client.zcard("shoal:quota:{default}::running"):
                break
            await asyncio.sleep(0.005)
    assert await client.zcard("shoal:quota:{default}::running") == 0


@pytest.mark.parametrize(
    "table",
    [
        {"acme": 1},
        {"acme": {"wieght": 1.0}},
        {"acme": {"weight": 0}},
        {"acme": {"priority": "urgent"}},
        {"acme": {"concurrent": -1}},
        {"acme": {"concurrent": True}},
        {"acme": {"redact": "email"}},
        {"acme": {"audit": "never"}},
    ],
)
def test_a_wrong_policy_is_refused_by_tenant_and_key(table: dict[str, Any]) -> None:
    """And nothing of the file is used."""
    with pytest.raises(PolicyError, match="acme"):
        read_policies(table, Policy())


async def test_policies_are_read_again_and_a_wrong_file_changes_nothing(
    tmp_path: Path, start_router: StartRouter
) -> None:
    """While running; at the start a wrong file is a reason not to."""
    path = tmp_path / "tenants.toml"
    path.write_text('[acme]\nconcurrent = 1\npriority = "batch"\n')
    policies = Policies(LimitsConfig(tenants_file=str(path), concurrent=9, requests_per_minute=5))
    assert (policies.of("acme").concurrent, policies.of("other").concurrent) == (1, 9)
    assert policies.of("acme").requests_per_minute == 5
    path.write_text("[acme]\nconcurrent = 2222\n")
    policies.refresh()
    assert policies.of("acme").concurrent == 2222
    path.write_text("[acme\n")
    policies.refresh()
    assert policies.of("acme").concurrent == 2222
    with pytest.raises(StartError, match=r"limits\.tenants_file"):
        await start_router(limits=LimitsConfig(tenants_file=str(path)))
