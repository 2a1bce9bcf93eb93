"""Certificates and records of keys over time."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from pathlib import Path

import pytest
import redis.asyncio

from shoal.router.access.door import Shown
from shoal.router.access.guard import Guard
from shoal.router.access.key import Key
from shoal.router.access.key_store import KEYS, FileKeys, KeysAwayError, RedisKeys
from shoal.router.access.keyring import Keyring, ends_of
from shoal.router.access.register import Register
from shoal.router.errors import CredentialError
from tests.certificates import Authority
from tests.router.access.showing import make_key, write_keys


async def test_a_certificate_that_expired_counts_no_more(tmp_path: Path) -> None:
    """Also on a connection that was made while it did; and what it began ends."""
    der = Authority(tmp_path).issue("known", uri="spiffe://acme/batch").der
    ends, now = ends_of(der), [time.time()]
    register = Register(FileKeys(str(tmp_path / "keys.json")), time.time)
    await register.create("acme", "user", certificate="uri:spiffe://acme/batch")
    keyring = Keyring([FileKeys(str(tmp_path / "keys.json"))])
    guard = Guard(keyring, None, lambda: now[0])
    await keyring.refresh()
    caller = await guard.identify(Shown(certificate=der))
    assert (caller.tenant, caller.expires) == ("acme", ends)

    async def work() -> None:
        async with guard.served(caller):
            now[0] = ends
            guard.show_out()
            await asyncio.Event().wait()

    with pytest.raises(CredentialError, match="while this was served"):
        await work()
    with pytest.raises(CredentialError):
        await guard.identify(Shown(certificate=der))


async def test_a_revoked_certificate_counts_no_more_until_it_is_registered_again(tmp_path: Path) -> None:
    """Whatever the order in which a store gives its records."""
    der = Authority(tmp_path).issue("known", uri="spiffe://acme/batch").der
    path, clock = tmp_path / "keys.json", [1.0]
    register = Register(FileKeys(str(path)), lambda: clock[0])
    old, _ = await register.create("acme", "admin", certificate="uri:spiffe://acme/batch")

    async def known() -> Key | None:
        keyring = Keyring([FileKeys(str(path))])
        await keyring.refresh()
        return keyring.of_certificate(der)

    clock[0] = 2.0
    old = await register.revoke(old.id)
    found = await known()
    assert found is not None
    assert not found.holds(2.0)
    new, _ = await register.create("acme", "user", certificate="uri:spiffe://acme/batch")
    for order in ((old, new), (new, old)):
        write_keys(path, *order)
        assert await known() == new


async def test_what_is_revoked_in_one_store_is_revoked(tmp_path: Path) -> None:
    """A copy of the record elsewhere does not bring it back."""
    key, shown = make_key("acme", "user")
    stores = [FileKeys(str(tmp_path / name)) for name in ("a.json", "b.json")]
    for first in (True, False):
        write_keys(tmp_path / "a.json", replace(key, revoked=1.0) if first else key)
        write_keys(tmp_path / "b.json", key if first else replace(key, revoked=1.0))
        keyring = Keyring(stores)
        for store in stores:
            store._seen = None
        await keyring.refresh()
        with pytest.raises(CredentialError):
            await Guard(keyring, None, time.time).identify(Shown(f"Bearer {shown}"))


@pytest.mark.parametrize("store", ["file", "redis"])
async def test_a_record_that_is_no_key_hides_no_revocation(tmp_path: Path, redis_url: str, store: str) -> None:
    """As a newer version may write one: it lets nobody in, and the others are what is said of them."""
    (key, shown), bad = make_key("acme", "user"), '{"id": "b", "tenant": "t", "role": "user", "digest": "d", "new": 1}'
    client = redis.asyncio.Redis.from_url(redis_url)
    path, kept = tmp_path / "keys.json", RedisKeys(client)
    keyring = Keyring([FileKeys(str(path)) if store == "file" else kept])
    guard = Guard(keyring, None, time.time)

    async def write(record: Key) -> None:
        if store == "file":
            path.write_text(f'{{"keys": [{bad}, {record.to_json()}]}}')
        else:
            await kept.put(record)

    await client.hset(KEYS, "b", bad)
    await write(key)
    await keyring.refresh()
    assert (await guard.identify(Shown(f"Bearer {shown}"))).key_id == key.id
    await write(replace(key, revoked=1.0))
    await keyring.refresh()
    await client.aclose()

    with pytest.raises(CredentialError):
        await guard.identify(Shown(f"Bearer {shown}"))
    if store == "file":
        with pytest.raises(KeysAwayError):  # it would be lost
            await FileKeys(str(path)).put(key)


async def test_looking_for_revoked_keys_never_ends(tmp_path: Path) -> None:
    """Whatever goes wrong once."""
    keyring = Keyring([FileKeys(str(tmp_path / "keys.json"))])
    looked = asyncio.Event()
    whole, times = keyring.refresh, iter(range(10))

    async def refresh() -> bool:
        if next(times) == 0:
            raise RuntimeError("once")
        looked.set()
        return await whole()

    keyring.refresh = refresh  # type: ignore[method-assign]  # to break it
    watching = asyncio.create_task(Guard(keyring, None, time.time).watch(0.001))
    await looked.wait()
    watching.cancel()


@pytest.mark.parametrize("how", ["key expires", "key revoked", "certificate revoked"])
async def test_what_a_credential_began_ends_with_it(tmp_path: Path, how: str) -> None:
    """At the first look after that, and nothing new begins."""
    now, path = [1_000.0], tmp_path / "keys.json"
    der = Authority(tmp_path).issue("known", uri="spiffe://acme/batch").der
    register = Register(FileKeys(str(path)), lambda: now[0])
    certificate = "uri:spiffe://acme/batch" if how.startswith("certificate") else ""
    key, secret = await register.create("acme", "user", certificate=certificate, seconds=10.0)
    keyring = Keyring([FileKeys(str(path))])
    guard = Guard(keyring, None, lambda: now[0])
    await keyring.refresh()
    shown = Shown(certificate=der) if certificate else Shown(f"Bearer {secret}")
    caller = await guard.identify(shown)
    begun = asyncio.Event()

    async def work() -> None:
        async with guard.served(caller):
            begun.set()
            await asyncio.Event().wait()

    working = asyncio.create_task(work())
    await begun.wait()
    guard.show_out()
    await asyncio.sleep(0)
    assert not working.done()
    if how.endswith("revoked"):
        await register.revoke(key.id)
        await keyring.refresh()
    else:
        now[0] = 1_010.0
    guard.show_out()

    with pytest.raises(CredentialError, match="while this was served"):
        await working
    with pytest.raises(CredentialError):
        await guard.identify(shown)


async def test_what_does_not_hear_is_told_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A client of Redis may take a cancellation for an error of its connection: the stream ends all the same."""
    monkeypatch.setattr("shoal.router.access.guard._AGAIN", 0.01)
    now = [1_000.0]
    key, shown = make_key("acme", "user", expires=1_010.0)
    write_keys(tmp_path / "keys.json", key)
    keyring = Keyring([FileKeys(str(tmp_path / "keys.json"))])
    guard, deaf = Guard(keyring, None, lambda: now[0]), 2
    await keyring.refresh()
    caller = await guard.identify(Shown(f"Bearer {shown}"))

    async def work() -> None:
        nonlocal deaf
        async with guard.served(caller):
            while True:
                try:
                    await asyncio.Event().wait()
                except asyncio.CancelledError:
                    if not deaf:
                        raise
                    deaf -= 1

    working = asyncio.create_task(work())
    watching = asyncio.create_task(guard.watch(0.005))
    await asyncio.sleep(0)
    now[0] = 1_010.0
    with pytest.raises(CredentialError, match="while this was served"):
        await asyncio.wait_for(working, 10)
    watching.cancel()
    assert working.cancelling() == 0


async def test_who_is_cancelled_by_others_stays_cancelled(tmp_path: Path) -> None:
    """Also when the credential ended at the same moment: a client that is gone hears no error."""
    now = [1_000.0]
    key, shown = make_key("acme", "user", expires=1_010.0)
    write_keys(tmp_path / "keys.json", key)
    keyring = Keyring([FileKeys(str(tmp_path / "keys.json"))])
    guard = Guard(keyring, None, lambda: now[0])
    await keyring.refresh()
    caller = await guard.identify(Shown(f"Bearer {shown}"))

    async def work() -> None:
        async with guard.served(caller):
            await asyncio.Event().wait()

    working = asyncio.create_task(work())
    await asyncio.sleep(0)
    now[0] = 1_010.0
    guard.show_out()
    working.cancel()
    with pytest.raises(asyncio.CancelledError):
        await working
