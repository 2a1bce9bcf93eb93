"""Where the ranks of a group find each other: a few keys and values, kept by the controller while an epoch lives.

    meeting = RendezvousServer("127.0.0.1")          # the controller's; closed when nobody holds it any more
    store = connect("127.0.0.1", meeting.port)       # a member's, as torch's process groups want it

Not torch's TCPStore: both its ends ask the DNS for the name of the other one, and while an answer is missing, for up to
five seconds, nobody meets.

One question and one answer at a time per connection: an operation (a byte), a key and a value, each after its length;
then whether there was a value, and the value. Waiting is asking again, so a member can stop at any time.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import socket
import struct
import threading
import time
import weakref
from collections.abc import Sequence
from enum import IntEnum

from torch.distributed import Store  # type: ignore[attr-defined]  # torch exports it without saying so

PATIENCE = 30.0
"""Seconds that members wait for each other."""

_ANSWER = 5.0
"""Seconds for an answer of the store itself, which is never busy."""

_AGAIN = 0.002
"""Seconds between two questions for what is not there yet."""

_LARGEST = 1 << 20
"""Bytes of a key or a value; addresses have some hundred."""

_HEAD, _TOLD = struct.Struct("!BII"), struct.Struct("!BI")


class _Do(IntEnum):
    GET = 0
    SET = 1
    ADD = 2  # a decimal number, 0 where there is none
    DELETE = 3


class RendezvousServer:
    """Owns the keys for as long as it lives. No rank owns them, so no rank's death takes them along."""

    def __init__(self, host: str) -> None:
        """Listen on a free port of `host`. Raises OSError when the address cannot be bound."""
        self.host = host
        self._listening = socket.create_server((host, 0))
        self.port = int(self._listening.getsockname()[1])
        loop = asyncio.new_event_loop()
        threading.Thread(target=_serve, args=(loop, self._listening), name="rendezvous", daemon=True).start()
        weakref.finalize(self, loop.call_soon_threadsafe, loop.stop)


def _serve(loop: asyncio.AbstractEventLoop, listening: socket.socket) -> None:
    """Until the loop is stopped."""
    values: dict[bytes, bytes] = {}
    members: set[asyncio.StreamWriter] = set()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        members.add(writer)
        try:
            await speak(reader, writer)
        finally:
            members.discard(writer)
            writer.close()

    async def speak(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, OSError):
            while True:
                code, key_size, value_size = _HEAD.unpack(await reader.readexactly(_HEAD.size))
                if code not in list(_Do) or max(key_size, value_size) > _LARGEST:
                    return
                key, value = await reader.readexactly(key_size), await reader.readexactly(value_size)
                found = _done(values, _Do(code), key, value)
                writer.write(_TOLD.pack(found is not None, len(found or b"")) + (found or b""))
                await writer.drain()

    asyncio.set_event_loop(loop)
    server = loop.run_until_complete(asyncio.start_server(answer, sock=listening))
    try:
        loop.run_forever()
    finally:
        server.close()
        for writer in members:
            writer.close()  # its task reads the end of it, and ends
        while tasks := asyncio.all_tasks(loop):
            loop.run_until_complete(asyncio.wait(tasks))
        loop.close()


def _done(values: dict[bytes, bytes], what: _Do, key: bytes, value: bytes) -> bytes | None:
    """What the key had before, or with ADD what it has now."""
    before = values.get(key)
    match what:
        case _Do.SET:
            values[key] = value
        case _Do.ADD:
            values[key] = before = b"%d" % (int(before or b"0") + int(value))
        case _Do.DELETE:
            values.pop(key, None)
    return before


class MeetingStore(Store):
    """A member's connection, for torch's process groups, which may use it from any thread."""

    def __init__(self, host: str, port: int) -> None:
        """Raises OSError when nobody listens."""
        super().__init__()
        self._socket = socket.create_connection((host, port), timeout=_ANSWER)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._asking = threading.Lock()

    def set(self, key: str, value: bytes | str) -> None:
        """Replace a value."""
        self._ask(_Do.SET, key, value.encode() if isinstance(value, str) else value)

    def get(self, key: str) -> bytes:
        """A value, as soon as there is one. Raises TimeoutError."""
        self.wait([key])
        return self._ask(_Do.GET, key) or b""

    def add(self, key: str, amount: int) -> int:
        """Count."""
        return int(self._ask(_Do.ADD, key, b"%d" % amount) or b"0")

    def deleteKey(self, key: str) -> bool:  # noqa: N802  # torch's name
        """Whether there was a value."""
        return self._ask(_Do.DELETE, key) is not None

    def check(self, keys: Sequence[str]) -> bool:
        """Whether all have values."""
        return all(self._ask(_Do.GET, key) is not None for key in keys)

    def wait(self, keys: Sequence[str], timeout: datetime.timedelta | None = None) -> None:
        """Until all have values. Raises TimeoutError."""
        patience = PATIENCE if timeout is None else timeout.total_seconds()
        give_up = time.monotonic() + patience
        while not self.check(keys):
            if time.monotonic() > give_up:
                raise TimeoutError(f"nobody set {', '.join(keys)} within {patience:g} s")
            time.sleep(_AGAIN)

    def _ask(self, what: _Do, key: str, value: bytes = b"") -> bytes | None:
        name = key.encode()
        with self._asking:
            try:
                self._socket.sendall(_HEAD.pack(what, len(name), len(value)) + name + value)
                found, size = _TOLD.unpack(self._read(_TOLD.size))
                told = self._read(size)
            except OSError:
                self._socket.close()  # an answer that comes late must not be taken for the next one
                raise
        return told if found else None

    def _read(self, size: int) -> bytes:
        read = b""
        while len(read) < size:
            if not (more := self._socket.recv(size - len(read))):
                raise ConnectionError("the meeting is over")
            read += more
        return read


def connect(host: str, port: int) -> MeetingStore:
    """A member's connection to the store; raises OSError when nobody listens."""
    return MeetingStore(host, port)
