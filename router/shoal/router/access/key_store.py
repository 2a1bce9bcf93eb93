"""Where keys are kept: a file (a mounted secret is one), or Redis. Read whole, and only when something changed."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import structlog

from shoal.router.access.key import BadKeyError, Key
from shoal.router.store.away import ABSENT
from shoal.router.store.script import Client, Script

_log = structlog.get_logger(__name__)

KEYS = "shoal:{keys}"
"""A Redis hash: id -> record. Its version is beside it, under the same hash tag, and rises with every change."""
VERSION = f"{KEYS}:version"


class KeysAwayError(Exception):
    """The keys cannot be read or written now; the message says where and why."""


class KeyStore(Protocol):
    """Keeps keys. Every method raises KeysAwayError."""

    async def changed(self) -> Sequence[Key] | None:
        """All keys; None when they are what they were at the last call."""
        ...

    async def all(self) -> Sequence[Key]:
        """All keys."""
        ...

    async def put(self, key: Key) -> None:
        """Store it in place of one with its id."""
        ...


class FileKeys:
    """A JSON file, `{"keys": [record, …]}`, that only its owner may read. One writer at a time."""

    def __init__(self, path: str) -> None:
        self._path = Path(path)
        self._seen: tuple[int, int, int] | None = None

    async def changed(self) -> Sequence[Key] | None:
        """See `KeyStore`."""
        try:
            stat = self._path.stat()  # follows links: a mounted secret changes by one
            seen = (stat.st_ino, stat.st_mtime_ns, stat.st_size)
            if seen == self._seen:
                return None
            keys = _those_that_are(self._read(), str(self._path))
        except OSError as error:
            raise KeysAwayError(f"{self._path} cannot be read: {error.strerror}") from error
        self._seen = seen
        return keys

    async def all(self) -> Sequence[Key]:
        """See `KeyStore`. A file that is not there holds none; one with a record that is none is not to be written."""
        try:
            return _parsed(self._read(), str(self._path))
        except FileNotFoundError:
            return []
        except OSError as error:
            raise KeysAwayError(f"{self._path} cannot be read: {error.strerror}") from error

    async def put(self, key: Key) -> None:
        """See `KeyStore`."""
        keys = {k.id: k for k in await self.all()} | {key.id: key}
        try:
            self._write(keys.values())
        except OSError as error:
            raise KeysAwayError(f"{self._path} cannot be written: {error.strerror}") from error

    def _write(self, keys: Iterable[Key]) -> None:
        """All of it or nothing."""
        part = self._path.with_name(self._path.name + ".part")
        lines = ",\n".join(key.to_json() for key in keys)
        with open(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
            file.write(f'{{"keys": [\n{lines}\n]}}\n')
            file.flush()
            os.fsync(file.fileno())
        part.replace(self._path)

    def _read(self) -> list[Any]:
        try:
            document = json.loads(self._path.read_text())
            return list(document["keys"])
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise KeysAwayError(f'{self._path} must hold {{"keys": [...]}}: {error}') from None


# KEYS: keys, version. ARGV: id, record. No transaction: redis-py's do not work in a cluster from an event loop.
_PUT = Script("""
redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
return redis.call('INCR', KEYS[2])
""")


class RedisKeys:
    """One hash for all routers."""

    def __init__(self, client: Client) -> None:
        self._client: Any = client
        self._seen: bytes | None = None

    async def changed(self) -> Sequence[Key] | None:
        """See `KeyStore`."""
        try:
            version = await self._client.get(VERSION) or b"0"
            if version == self._seen:
                return None
            records: Mapping[bytes, bytes] = await self._client.hgetall(KEYS)
        except ABSENT as error:
            raise KeysAwayError(f"Redis does not answer: {type(error).__name__}") from error
        keys = _those_that_are(list(records.values()), "Redis")
        self._seen = version  # read before the records: a change between the two is seen next time
        return keys

    async def all(self) -> Sequence[Key]:
        """See `KeyStore`."""
        self._seen = None
        return await self.changed() or []

    async def put(self, key: Key) -> None:
        """See `KeyStore`."""
        try:
            await _PUT.run(self._client, [KEYS, VERSION], [key.id, key.to_json()])
        except ABSENT as error:
            raise KeysAwayError(f"Redis does not answer: {type(error).__name__}") from error


def _those_that_are(records: Sequence[Any], where: str) -> list[Key]:
    """Without those that are no keys: they let nobody in, and what is said of the others is heard all the same."""
    keys = []
    for record in records:
        try:
            keys.append(Key.from_json(record))
        except BadKeyError as error:
            _log.warning("key_unreadable", where=where, problem=str(error))
    return keys


def _parsed(records: Sequence[Any], where: str) -> list[Key]:
    try:
        return [Key.from_json(record) for record in records]
    except BadKeyError as error:
        raise KeysAwayError(f"{where} holds a record that is no key: {error}") from error
