"""Credentials over time, and over every way in."""

from __future__ import annotations

import asyncio
import ssl
import time
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
import redis.asyncio

from shoal.proto.v1 import inference_pb2 as api
from shoal.proto.v1.inference_pb2_grpc import InferenceServiceStub
from shoal.router.access.config import AccessConfig
from shoal.router.access.door import Shown
from shoal.router.access.guard import Guard
from shoal.router.access.jwks import Jwks
from shoal.router.access.key import BadKeyError, Key, matches
from shoal.router.access.key_store import FileKeys, RedisKeys
from shoal.router.access.keyring import Keyring, names_of
from shoal.router.access.register import NoSuchKeyError, Register
from shoal.router.access.token import Tokens
from shoal.router.config import RouterConfig
from shoal.router.errors import CredentialError, CredentialsAwayError, StartError
from shoal.router.fleet.scripted_worker import Hang, Say, ScriptedWorker, doing, saying
from shoal.router.server import Router
from shoal.router.tokenizer import Tokenizer
from shoal.wire.credentials import open_channel
from shoal.wire.settings import SettingError
from shoal.wire.tls import INTERNAL_NAME, TlsConfig, calling_credentials
from tests.certificates import Authority
from tests.router.access.showing import Provider, Ring, make_key, write_keys
from tests.router.conftest import StartCluster
from tests.router.http.asking import Answer, ask
from tests.router.talking import events_of, failed, trailing, until


@pytest.fixture
def ring(tmp_path: Path) -> Ring:
    """Credentials of acme."""
    return Ring(tmp_path)


@pytest.mark.parametrize("how", ["revoked", "gone"])
async def test_a_key_revoked_in_the_middle_of_a_stream_ends_it(
    start_cluster: StartCluster, ring: Ring, how: str
) -> None:
    """The stream ends within the time between two looks; the worker hears of it; another key's stream goes on."""
    cluster = await start_cluster(doing(Say((1,)), Hang()), access=ring.config())
    stub: Any = cluster.front.inference

    def stream(role: str) -> Any:
        shown = (("authorization", f"Bearer {ring.shown[role]}"),)
        return stub.Generate(api.GenerateRequest(text="x"), metadata=shown, timeout=10)

    ending, going = asyncio.create_task(failed(stream("user"))), asyncio.create_task(failed(stream("admin")))
    await until(lambda: len(cluster.worker.submits) == 2)
    if how == "revoked":
        ring.revoke("user")
    else:
        del ring.keys["user"]
        ring.write()
    events, error = await ending

    assert error.code() is grpc.StatusCode.UNAUTHENTICATED
    assert trailing(error)["shoal-reason"] == "credential"
    assert events[-1].error.code == grpc.StatusCode.UNAUTHENTICATED.value[0]
    await until(lambda: len(cluster.worker.cancels) == 1)
    assert not going.done()
    _, refused = await failed(stream("user"))
    assert refused.code() is grpc.StatusCode.UNAUTHENTICATED
    going.cancel()


async def test_a_token_that_expires_in_the_middle_of_a_stream_ends_it(start_cluster: StartCluster, ring: Ring) -> None:
    """As a revoked key does, over both APIs; a longer-lived token's stream goes on."""
    script = doing(Say((1,)), Hang())
    cluster = await start_cluster(script, access=ring.config(leeway=0.0), http_port=0, model_name="model")
    guard: Any = cluster.front.router._protection.door
    stub: Any = cluster.front.inference
    soon, later = ring.provider.token(exp=int(time.time()) + 60), ring.provider.token(exp=int(time.time()) + 600)

    def stream(token: str) -> Any:
        shown = (("authorization", f"Bearer {token}"),)
        return stub.Generate(api.GenerateRequest(text="x"), metadata=shown, timeout=10)

    body = {"model": "model", "prompt": "x", "stream": True}
    http = asyncio.create_task(
        ask(cluster.front.listening.http, "/v1/completions", body, authorization=f"Bearer {soon}")
    )
    ending, going = asyncio.create_task(failed(stream(soon))), asyncio.create_task(failed(stream(later)))
    await until(lambda: len(cluster.worker.submits) == 3)
    guard._now = lambda: time.time() + 61
    events, error = await ending
    answer = await http

    assert error.code() is grpc.StatusCode.UNAUTHENTICATED
    assert events[-1].error.code == grpc.StatusCode.UNAUTHENTICATED.value[0]
    assert answer.status == 200
    assert answer.events[-1]["error"]["type"] == "authentication_error"
    await until(lambda: len(cluster.worker.cancels) == 2)
    assert not going.done()
    going.cancel()


async def test_following_background_work_ends_with_the_credential(
    start_cluster: StartCluster, ring: Ring, redis_url: str
) -> None:
    """A revoked key hears no more, and its work ends; what a token began outlives the token, listening does not."""
    cluster = await start_cluster(
        doing(Say((1,)), Hang()), access=ring.config(leeway=0.0), http_port=0, model_name="model", redis_url=redis_url
    )
    guard: Any = cluster.front.router._protection.door
    address, begun = cluster.front.listening.http, {"model": "model", "input": "A", "background": True}
    by_token, by_key = (f"Bearer {ring.provider.token()}", f"Bearer {ring.shown['user']}")
    streams = [
        asyncio.create_task(ask(address, "/v1/responses", {**begun, "stream": True}, authorization=shown))
        for shown in (by_token, by_key)
    ]
    await until(lambda: len(cluster.worker.submits) == 2)
    guard._now = lambda: time.time() + 700
    assert last_word(await streams[0]) == "credential"
    assert not cluster.worker.cancels
    assert not streams[1].done()
    ring.revoke("user")

    assert last_word(await streams[1]) == "credential"
    await until(lambda: len(cluster.worker.cancels) == 1)


def last_word(answer: Answer) -> str:
    """Why a stream ended, or did not begin."""
    return str(answer.error["code"] if answer.status == 401 else answer.events[-1]["code"])


async def test_keys_of_redis_are_known_and_revoked_everywhere(start_cluster: StartCluster, redis_url: str) -> None:
    """A key made in Redis is known soon, goes on to count while Redis is away, and stops when it is revoked."""
    client = redis.asyncio.Redis.from_url(redis_url)
    register = Register(RedisKeys(client), time.time)
    access = AccessConfig(required=True, refresh=0.05)
    cluster = await start_cluster(saying([1]), access=access, redis_url=redis_url)
    stub: Any = cluster.front.inference
    key, shown = await register.create("acme", "user")
    assert shown[17:].encode() not in (await client.dump("shoal:{keys}") or b"")  # never the secret

    async def code() -> grpc.StatusCode:
        try:
            await stub.ListModels(api.ListModelsRequest(), metadata=(("authorization", f"Bearer {shown}"),))
        except grpc.aio.AioRpcError as error:
            return error.code()
        return grpc.StatusCode.OK

    async def becomes(expected: grpc.StatusCode) -> None:
        for _ in range(100):
            if await code() is expected:
                return
            await asyncio.sleep(0.02)
        raise AssertionError(f"never became {expected}")

    await becomes(grpc.StatusCode.OK)
    await register.revoke(key.id)
    await becomes(grpc.StatusCode.UNAUTHENTICATED)
    await client.aclose()


async def test_nobody_is_known_until_the_keys_were_read_and_then_they_stay_known(tmp_path: Path) -> None:
    """A store that never answered says come back, not go away; one that stops answering changes nothing."""
    path = tmp_path / "keys.json"
    keyring = Keyring([FileKeys(str(path))])
    guard = Guard(keyring, None, time.time)
    key, shown = make_key("acme", "user")
    await keyring.refresh()
    with pytest.raises(CredentialsAwayError):
        await guard.identify(Shown(f"Bearer {shown}"))
    write_keys(path, key)
    await keyring.refresh()
    assert (await guard.identify(Shown(f"Bearer {shown}"))).tenant == "acme"
    path.write_text("half writ")
    await keyring.refresh()

    assert (await guard.identify(Shown(f"Bearer {shown}"))).key_id == key.id


async def test_a_rotated_key_and_its_successor_both_count_for_a_while(tmp_path: Path) -> None:
    """Rotation changes the secret, not the owner; the old one ends after its grace."""
    register = Register(FileKeys(str(tmp_path / "keys.json")), lambda: 1000.0)
    old, old_shown = await register.create("acme", "viewer", name="dashboards", seconds=100.0, concurrent=3)
    new, new_shown = await register.rotate(old.id, grace=10.0)
    kept = {key.id: key for key in await register.all()}

    assert (new.tenant, new.role, new.name, new.concurrent) == ("acme", "viewer", "dashboards", 3)
    assert old_shown != new_shown
    assert matches(new, new_shown[17:])
    assert kept[old.id].holds(1009.0)
    assert not kept[old.id].holds(1010.0)
    assert kept[new.id].holds(1099.0)
    assert (tmp_path / "keys.json").stat().st_mode & 0o077 == 0
    with pytest.raises(NoSuchKeyError):
        await register.revoke("aaaaaaaaaaaa")


@pytest.mark.parametrize(
    "record",
    [
        "{}",
        "[]",
        "nonsense",
        '{"id": "a", "tenant": "t", "role": "king", "digest": "d"}',
        '{"id": "a", "tenant": "t", "role": "user"}',
        '{"id": "a", "tenant": "t", "role": "user", "digest": "d", "certificate": "dns:x"}',
        '{"id": "a", "tenant": "t\\u0000", "role": "user", "digest": "d"}',
        '{"id": "a", "tenant": "t", "role": "user", "digest": "d", "expires": "soon"}',
        '{"id": "a", "tenant": "t", "role": "user", "certificate": "x"}',
        '{"id": "a", "tenant": "t", "role": "user", "digest": "d", "more": 1}',
    ],
)
def test_a_record_that_is_no_key_is_refused(record: str) -> None:
    """Whatever is in the file or in Redis, it becomes a key or a clear error."""
    with pytest.raises(BadKeyError):
        Key.from_json(record)


async def test_a_known_certificate_is_a_credential_for_both_apis(start_cluster: StartCluster, tmp_path: Path) -> None:
    """By its name, over gRPC and HTTP; one that TLS believes and nobody registered is nobody."""
    authority = Authority(tmp_path)
    server, known = authority.issue("server", "127.0.0.1"), authority.issue("known", uri="spiffe://acme/batch")
    unknown = authority.issue("unknown", "somebody")
    register = Register(FileKeys(str(tmp_path / "keys.json")), time.time)
    await register.create("acme", "user", certificate="uri:spiffe://acme/batch")
    cluster = await start_cluster(
        saying([1]),
        access=AccessConfig(required=True, keys_file=str(tmp_path / "keys.json")),
        tls=TlsConfig(certificate=server.certificate, key=server.key, client_ca=authority.file),
        http_port=0,
    )
    listening = cluster.front.listening

    async def grpc_code(pair: Any) -> grpc.StatusCode:
        credentials = calling_credentials(authority.file, pair.certificate, pair.key)
        async with open_channel(listening.address, credentials=credentials) as channel:
            stub: Any = InferenceServiceStub(channel)
            try:
                await stub.ListModels(api.ListModelsRequest(), timeout=5)
            except grpc.aio.AioRpcError as error:
                return error.code()
        return grpc.StatusCode.OK

    async def http_status(pair: Any) -> int:
        context = ssl.create_default_context(cafile=authority.file)
        if pair is not None:
            context.load_cert_chain(pair.certificate, pair.key)
        return (await ask(listening.http, "/v1/models", tls=context)).status

    assert await grpc_code(known) is grpc.StatusCode.OK
    assert await grpc_code(unknown) is grpc.StatusCode.UNAUTHENTICATED
    assert [await http_status(pair) for pair in (known, unknown, None)] == [200, 401, 401]
    assert names_of(known.der)[1:] == ["uri:spiffe://acme/batch", "cn:known"]
    assert names_of(b"noise") == []


async def test_a_router_reaches_its_workers_over_mutual_tls(
    tokenizer: Tokenizer, tmp_path: Path, model_dir: Path
) -> None:
    """With the internal certificate it is let in, without it is not."""
    authority = Authority(tmp_path)
    pair = authority.issue("internal", INTERNAL_NAME)
    tls = TlsConfig(internal_ca=authority.file, internal_certificate=pair.certificate, internal_key=pair.key)
    async with ScriptedWorker(saying([1]), tls) as worker:
        for config, found in ((tls, 1), (TlsConfig(), 0)):
            router = Router(
                RouterConfig(str(model_dir), port=0, metrics_port=-1, workers=(worker.address,), tls=config), tokenizer
            )
            await router.start()
            if found:
                await until(lambda router=router: len(router.pool.eligible()) == 1)  # type: ignore[misc]  # a default, to bind it
            else:
                await asyncio.sleep(0.3)
            assert len(router.pool.eligible()) == found
            await router.stop(0)


async def test_tokens_are_checked_once_and_again_when_they_expire(ring: Ring) -> None:
    """What was verified is remembered until it expires, and verified anew then."""
    now, verified = [time.time()], list[str]()
    config = ring.config(leeway=0.0)
    tokens = Tokens(config, Jwks(config.jwks, "", 300.0, lambda: 0.0), lambda: now[0])
    verify = tokens._verified

    async def counted(token: str) -> Any:
        verified.append(token)
        return await verify(token)

    tokens._verified = counted  # type: ignore[method-assign]  # to count
    token = ring.provider.token("user")
    for _ in range(3):
        assert (await tokens.caller(token)).role == "user"
    assert len(verified) == 1
    now[0] += 601.0
    await tokens.caller(token)

    assert len(verified) == 2


async def test_a_key_that_the_provider_took_back_ends_what_was_remembered(ring: Ring, tmp_path: Path) -> None:
    """Tokens that were checked by it are not believed any longer once the provider's keys were read again."""
    clock, other = [0.0], Provider(tmp_path / "other")
    config = ring.config()
    tokens = Tokens(config, Jwks(config.jwks, "", 300.0, lambda: clock[0]), time.time)
    old = ring.provider.token("user")
    assert (await tokens.caller(old)).role == "user"
    ring.provider.file.write_text(other.file.read_text())
    clock[0] = 200.0
    assert (await tokens.caller(old)).role == "user"
    clock[0] = 301.0

    with pytest.raises(CredentialError):
        await tokens.caller(old)
    assert (await tokens.caller(other.token("viewer"))).role == "viewer"


async def test_without_a_providers_keys_tokens_come_back_later(ring: Ring) -> None:
    """It is not the caller's fault, and says so."""
    config = ring.config(jwks=str(ring.file) + ".gone")
    tokens = Tokens(config, Jwks(config.jwks, "", 300.0, time.monotonic), time.time)
    with pytest.raises(CredentialsAwayError):
        await tokens.caller(ring.provider.token())


async def test_unknown_signers_do_not_make_the_router_ask_again_and_again(ring: Ring) -> None:
    """However many tokens name keys that do not exist, the provider is asked once in ten seconds."""
    clock = [0.0]
    jwks = Jwks(str(ring.provider.file), "", 1000.0, lambda: clock[0])
    asked: list[float] = []
    fetch = jwks._fetch

    def counted() -> bytes:
        asked.append(clock[0])
        return fetch()

    jwks._fetch = counted  # type: ignore[method-assign]  # to count
    for second in range(25):
        clock[0] = float(second)
        await asyncio.gather(*(jwks.key(f"unknown-{n}") for n in range(10)))

    assert asked == [0.0, 11.0, 22.0]


@pytest.mark.parametrize(
    ("given", "key"),
    [
        ({"jwks": "http://x"}, "jwks"),
        ({"jwks": "f", "issuer": "i"}, "audience"),
        ({"algorithms": ("HS256",)}, "algorithms"),
        ({"algorithms": ("none",)}, "algorithms"),
        ({"algorithms": ()}, "algorithms"),
        ({"refresh": 0.0}, "refresh"),
    ],
)
def test_settings_that_would_open_a_hole_are_refused(given: dict[str, Any], key: str) -> None:
    """Signatures that anybody can make, keys over plain HTTP, tokens for anybody."""
    with pytest.raises(SettingError, match=rf"access\.{key}"):
        AccessConfig(**given)


def test_closed_off_loopback(tokenizer: Tokenizer, tmp_path: Path) -> None:
    """Off loopback TLS alone is not enough, credentials alone are not; both are, or `insecure`."""
    pair = Authority(tmp_path).issue("server", "127.0.0.1")
    (tmp_path / "keys.json").write_text('{"keys": []}')
    tls = TlsConfig(certificate=pair.certificate, key=pair.key)
    access = AccessConfig(required=True, keys_file=str(tmp_path / "keys.json"))
    for given, lacks in (({}, "encryption.* and asking"), ({"tls": tls}, "asking"), ({"access": access}, "encryption")):
        with pytest.raises(StartError, match=rf"router\.host.*{lacks}"):
            Router(RouterConfig("m", host="0.0.0.0", **given), tokenizer)
    with pytest.raises(StartError, match=r"router\.http_host"):
        Router(RouterConfig("m", http_host="0.0.0.0", http_port=0), tokenizer)


def test_credentials_without_anything_to_check_them_by_are_a_mistake(tokenizer: Tokenizer) -> None:
    """A router that could never let anybody in does not start."""
    with pytest.raises(StartError, match=r"access\.required"):
        Router(RouterConfig("m", access=AccessConfig(required=True)), tokenizer)


async def test_events_of_an_open_router_need_nothing(start_cluster: StartCluster) -> None:
    """On loopback everything works without a credential, as it does for a first try."""
    cluster = await start_cluster(saying([1]))
    assert (await events_of(cluster.front.inference.Generate(api.GenerateRequest(text="x"))))[-1].HasField("done")
