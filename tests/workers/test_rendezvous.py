"""The meeting place of an epoch's members, over real sockets."""

from __future__ import annotations

import contextlib
import datetime
import gc
import socket
import threading

import pytest

from shoal.workers.experts.rendezvous import MeetingStore, RendezvousServer, connect


@pytest.fixture
def meeting() -> RendezvousServer:
    """One that lives as long as the test."""
    return RendezvousServer("127.0.0.1")


@pytest.fixture
def store(meeting: RendezvousServer) -> MeetingStore:
    """A member's connection."""
    return connect("127.0.0.1", meeting.port)


def test_members_read_what_others_set(meeting: RendezvousServer, store: MeetingStore) -> None:
    """Any bytes, the latest of them; counting and deleting are seen by all."""
    other = connect("127.0.0.1", meeting.port)
    store.set("a", b"1")
    store.set("a", bytes(range(256)))
    assert bytes(range(256)) == other.get("a")
    assert [5, 3] == [store.add("n", 5), other.add("n", -2)]
    assert (True, False) == (other.deleteKey("a"), store.deleteKey("a"))
    assert (True, False) == (store.check(["n"]), store.check(["n", "a"]))


def test_a_member_waits_for_what_is_not_there_yet(meeting: RendezvousServer, store: MeetingStore) -> None:
    """And no longer than it is told."""
    later = threading.Timer(0.05, connect("127.0.0.1", meeting.port).set, ("late", b"here"))
    later.start()
    assert store.get("late") == b"here"
    with pytest.raises(TimeoutError, match="never"):
        store.wait(["late", "never"], datetime.timedelta(seconds=0.01))


def test_a_meeting_that_nobody_holds_is_over() -> None:
    """Its socket and its thread are gone, and members are told."""
    before = set(threading.enumerate())
    meeting = RendezvousServer("127.0.0.1")
    (thread,) = set(threading.enumerate()) - before
    late, port = connect("127.0.0.1", meeting.port), meeting.port
    late.set("a", b"1")
    del meeting
    gc.collect()
    thread.join(10)
    assert not thread.is_alive()
    with pytest.raises(OSError):  # noqa: PT011  # refused, or reset when the end is not yet known here
        late.get("a")
    with pytest.raises(ConnectionRefusedError):
        connect("127.0.0.1", port)


@pytest.mark.parametrize("sent", [b"\xff" * 64, b"\x01" + b"\x7f" * 8], ids=["no operation", "too large"])
def test_whoever_speaks_something_else_is_hung_up_on(
    meeting: RendezvousServer, store: MeetingStore, sent: bytes
) -> None:
    """The others go on."""
    with socket.create_connection(("127.0.0.1", meeting.port), timeout=10) as stranger:
        stranger.sendall(sent)
        with contextlib.suppress(ConnectionResetError):  # it had sent more than was read
            assert stranger.recv(1) == b""
    store.set("a", b"1")
    assert store.get("a") == b"1"
