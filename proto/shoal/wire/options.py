"""gRPC channel arguments, in one place because both ends must agree: a server refuses pings that it finds too many.

A stopped peer (SIGSTOP, a lost machine) leaves its sockets open. Keepalive alone does not notice for a minute: gRPC's
own timer of the outstanding ping decides, so `grpc.http2.ping_timeout_ms` is set along with it.
"""

from __future__ import annotations

Options = list[tuple[str, int | str]]

MAX_MESSAGE_BYTES = 16 * 1024 * 1024
"""Largest message either way: a prompt of the whole context as ids or as text fits several times."""

PING_EVERY_MS = 1_000
PING_TIMEOUT_MS = 2_000
"""A silent peer is given up after `PING_EVERY_MS + PING_TIMEOUT_MS`; a busy one answers from gRPC's own threads."""


def client_options(*, ping_every_ms: int = PING_EVERY_MS, ping_timeout_ms: int = PING_TIMEOUT_MS) -> Options:
    """For a channel between our own processes."""
    return [
        ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
        ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
        ("grpc.keepalive_time_ms", ping_every_ms),
        ("grpc.keepalive_timeout_ms", ping_timeout_ms),
        ("grpc.http2.ping_timeout_ms", ping_timeout_ms),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_pings_without_data", 0),
        # Channels share nothing: a new one after a failure must not wait for the backoff that an old one earned.
        ("grpc.use_local_subchannel_pool", 1),
        ("grpc.enable_retries", 0),
    ]


def server_options(*, least_ping_gap_ms: int = 500) -> Options:
    """For a server that our own processes and the public connect to. Port sharing is off: a taken port is an error."""
    return [
        ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
        ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
        ("grpc.keepalive_time_ms", 20_000),
        ("grpc.keepalive_timeout_ms", 10_000),
        ("grpc.http2.ping_timeout_ms", 10_000),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.min_ping_interval_without_data_ms", least_ping_gap_ms),
        ("grpc.http2.min_recv_ping_interval_without_data_ms", least_ping_gap_ms),
        ("grpc.max_concurrent_streams", 1_024),
        ("grpc.so_reuseport", 0),
    ]
