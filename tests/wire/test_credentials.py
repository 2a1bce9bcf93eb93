"""Who may listen where in the clear."""

from __future__ import annotations

import grpc.aio
import pytest

from shoal.wire.credentials import (
    InsecureRefusedError,
    add_port,
    is_loopback,
    join_address,
    require_loopback_or,
)
from shoal.wire.options import server_options


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "127.1.2.3", "::1", "[::1]"])
def test_loopback_needs_nothing(host: str) -> None:
    """Addresses that only this machine reaches may be open."""
    assert is_loopback(host)
    require_loopback_or(False, host, "a test")


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.1", "example.org", ""])
def test_anything_else_must_be_asked_for(host: str) -> None:
    """Off loopback a listener in the clear is refused by name, unless insecure was said."""
    with pytest.raises(InsecureRefusedError, match="a test would listen"):
        require_loopback_or(False, host, "a test")
    require_loopback_or(True, host, "a test")


def test_addresses_of_both_families_are_joined() -> None:
    """An IPv6 address gets its brackets exactly once."""
    assert join_address("::1", 5) == join_address("[::1]", 5) == "[::1]:5"
    assert join_address("localhost", 5) == "localhost:5"


async def test_a_taken_port_is_an_error() -> None:
    """Two servers never share a port by accident."""
    first, second = grpc.aio.server(options=server_options()), grpc.aio.server(options=server_options())
    port = add_port(first, "127.0.0.1", 0)
    await first.start()
    try:
        with pytest.raises(OSError, match=str(port)):
            add_port(second, "127.0.0.1", port)
    finally:
        await first.stop(0)
