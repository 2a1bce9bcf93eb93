"""Connections over TLS that read their certificates anew each time they are made, so that they can be renewed.

redis-py keeps what it read first for the life of a connection object, which outlives its sockets.
"""

from __future__ import annotations

from redis.asyncio import SSLConnection
from redis.asyncio.cluster import RedisCluster
from redis.asyncio.sentinel import Sentinel, SentinelManagedConnection


class FollowingConnection(SSLConnection):
    """To one server, or to a cluster's."""

    async def _connect(self) -> None:
        self.ssl_context.context = None
        await super()._connect()  # type: ignore[no-untyped-call]  # redis-py does not say


class FollowingPrimary(SentinelManagedConnection, FollowingConnection):
    """To whichever server a service's sentinels name."""


def follow_in_cluster(client: RedisCluster) -> None:
    """Have every connection to its nodes follow, also to those that are not known yet."""
    for known in (client.connection_kwargs, client.nodes_manager.connection_kwargs):
        known["connection_class"] = FollowingConnection
    for node in client.nodes_manager.startup_nodes.values():
        node.connection_class = FollowingConnection


def follow_sentinels(sentinels: Sentinel) -> None:
    """Have every connection to the sentinels themselves follow."""
    for sentinel in sentinels.sentinels:
        sentinel.connection_pool.connection_class = FollowingConnection
