"""Listening and calling, in the clear or over TLS (`tls.py`). The clear is for loopback, unless asked for by name."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from typing import Any

import grpc
import grpc.aio

from shoal.wire.options import client_options


class InsecureRefusedError(Exception):
    """A listener off loopback would be open to anybody; the message says how to allow it."""


def is_loopback(host: str) -> bool:
    """Whether `host` (a name or an address, brackets allowed) can only be reached from this machine.

    >>> is_loopback("localhost"), is_loopback("[::1]"), is_loopback("127.0.0.9"), is_loopback("0.0.0.0")
    (True, True, True, False)
    """
    bare = host.strip("[]")
    if bare == "localhost":
        return True
    try:
        return ipaddress.ip_address(bare).is_loopback
    except ValueError:
        return False  # a name may point anywhere


def require_loopback_or(insecure: bool, host: str, what: str, lacking: str = "encryption") -> None:
    """Raise InsecureRefusedError when `what` would listen on `host` without what it lacks, not having been told to."""
    if not insecure and not is_loopback(host):
        raise InsecureRefusedError(
            f"{what} would listen on {host} without {lacking}; bind it to 127.0.0.1 or say insecure = true"
        )


def join_address(host: str, port: int) -> str:
    """`host:port`, with brackets around an IPv6 address."""
    bare = host.strip("[]")
    return f"[{bare}]:{port}" if ":" in bare else f"{bare}:{port}"


def add_port(server: grpc.aio.Server, host: str, port: int, credentials: grpc.ServerCredentials | None = None) -> int:
    """Let `server` listen, in the clear without `credentials`; returns the port in use (port 0 picks one).

    Raises OSError when it cannot be had.
    """
    address = join_address(host, port)
    try:
        bound: int = (
            server.add_insecure_port(address) if credentials is None else server.add_secure_port(address, credentials)
        )
    except RuntimeError as error:
        raise OSError(f"cannot listen on {address}: {error}") from error
    if bound == 0:
        raise OSError(f"cannot listen on {address}")
    return bound


def open_channel(
    address: str,
    options: Sequence[tuple[str, Any]] | None = None,
    credentials: grpc.ChannelCredentials | None = None,
    name: str = "",
) -> grpc.aio.Channel:
    """A channel to `address` (`host:port`); lazily connected. `options` default to `client_options()`.

    With `credentials` over TLS; `name` is who the other end must be, by default the host of `address`.
    """
    told = [*(client_options() if options is None else options), *_named(name)]
    if credentials is None:
        return grpc.aio.insecure_channel(address, options=told)
    return grpc.aio.secure_channel(address, credentials, options=told)


def open_sync_channel(address: str, credentials: grpc.ChannelCredentials | None = None, name: str = "") -> grpc.Channel:
    """The same for code without an event loop."""
    told = [*client_options(), *_named(name)]
    if credentials is None:
        return grpc.insecure_channel(address, options=told)
    return grpc.secure_channel(address, credentials, options=told)


def _named(name: str) -> list[tuple[str, Any]]:
    return [("grpc.ssl_target_name_override", name)] if name else []
