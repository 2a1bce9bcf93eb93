"""`shoal drain`: empty the workers of one machine or pod before it goes away.

Routers read in the registry that these workers are leaving: they send nothing new and move what runs elsewhere. The
mark is set again while we wait, should the controller write its record meanwhile.
"""

from __future__ import annotations

import contextlib
import time
from dataclasses import replace

import redis
import structlog

from shoal.cluster.client import worker_status
from shoal.cluster.errors import ConfigError, UnhealthyError
from shoal.cluster.own_access import OwnAccess
from shoal.router.store.away import ABSENT
from shoal.router.store.blocking import Blocking, RedisUrlError, connect_blocking
from shoal.wire.registry import GROUPS_KEY, GroupEntry, decode, encode, group_key

log = structlog.get_logger()

_POLL = 0.5  # seconds between two looks
_TIMEOUT = 2.0  # seconds for each question
_AWAY = 15.0  # seconds for a registry that never answered: where all is taken down it will not come back


def run(redis_url: str, host: str, timeout: float, access: OwnAccess | None = None) -> None:
    """Until nothing runs on the workers at `host`. Raises UnhealthyError when the time is up, ConfigError."""
    if not redis_url:
        raise ConfigError("cluster.redis_url is missing: the registry is there")
    began = time.monotonic()
    give_up = began + timeout
    known: list[str] | None = None  # nobody said yet who is here
    while True:
        try:
            with contextlib.closing(connect_blocking(redis_url, _TIMEOUT)) as client:
                known = mark(client, host)
        except RedisUrlError as error:
            raise ConfigError(f"cluster.redis_url cannot be used: {error}") from error
        except ABSENT as error:
            log.warning("the registry is away", problem=type(error).__name__)
            if known is None and time.monotonic() + _POLL > min(began + _AWAY, give_up):
                raise UnhealthyError("the registry is away: no router can be told that these workers leave") from error
        left = [address for address in known or () if _busy(address, access)]
        if known is not None and not left:
            log.info("drained", host=host)
            return
        if time.monotonic() + _POLL > give_up:
            raise UnhealthyError(f"after {timeout:g} s requests still run on {', '.join(left) or host}")
        time.sleep(_POLL)


def mark(client: Blocking, host: str) -> list[str]:
    """Say in the registry that the workers at `host` are leaving; their addresses. Raises redis.RedisError."""
    marked: list[str] = []
    for raw in client.smembers(GROUPS_KEY):
        key = group_key(raw.decode() if isinstance(raw, bytes) else raw)
        with client.pipeline(transaction=True) as pipe:
            pipe.watch(key)  # type: ignore[no-untyped-call]  # redis publishes no type for it
            record = pipe.get(key)
            if not isinstance(record, bytes):
                continue
            entry = leaving(decode(record), host)
            marked += [worker.address for worker in entry.workers if worker.draining and _at(worker.address, host)]
            if encode(entry) != record:
                pipe.multi()
                pipe.set(key, encode(entry))
                try:
                    pipe.execute()
                except redis.WatchError:
                    continue  # somebody wrote it meanwhile: the next look marks it
    return marked


def leaving(entry: GroupEntry, host: str) -> GroupEntry:
    """The record with the workers at `host` draining."""
    workers = tuple(replace(w, draining=w.draining or _at(w.address, host)) for w in entry.workers)
    return replace(entry, workers=workers)


def _at(address: str, host: str) -> bool:
    return address.rpartition(":")[0].strip("[]") == host.strip("[]")


def _busy(address: str, access: OwnAccess | None) -> bool:
    state = worker_status(address, _TIMEOUT, access)
    return state is not None and state.running + state.waiting > 0
