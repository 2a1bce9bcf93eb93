"""The same URLs as `connect.py` takes, for commands that ask once and wait for the answer."""

from __future__ import annotations

from typing import Any

import redis
import redis.cluster
from redis.backoff import ExponentialBackoff
from redis.retry import Retry
from redis.sentinel import Sentinel

from shoal.router.store.connect import RedisUrlError, Several, check, read_several, tls_options

__all__ = ["Blocking", "RedisUrlError", "connect_blocking", "each_server", "one_server"]

Blocking = redis.Redis
"""A client for one server, a service's primary, or, with the same commands, a cluster."""


def connect_blocking(url: str, timeout: float = 2.0) -> Blocking:
    """A client for whatever the URL names; a command is given up after `timeout` seconds. Raises RedisUrlError."""
    check(url)
    several = read_several(url)
    timeouts: dict[str, Any] = {"socket_timeout": timeout, "socket_connect_timeout": timeout}
    if several is None:
        return redis.Redis.from_url(url, **timeouts)
    login: dict[str, Any] = {"username": several.username, "password": several.password}
    if several.kind == "cluster":
        untyped: Any = redis.cluster
        nodes = [untyped.ClusterNode(host, port) for host, port in several.nodes]
        made: Blocking = untyped.RedisCluster(
            startup_nodes=nodes, require_full_coverage=False, **login, **tls_options(several), **timeouts
        )
        return made
    return _primary(several, login, timeouts)


def _primary(several: Several, login: dict[str, Any], timeouts: dict[str, Any]) -> Blocking:
    """Of the sentinels' service, asked for at each connection."""
    asking: dict[str, Any] = {
        "username": several.options.get("sentinel_username"),
        "password": several.options.get("sentinel_password"),
        "retry": Retry(ExponentialBackoff(cap=0.2, base=0.02), 1),  # the library's own takes many seconds
        **tls_options(several),
        **timeouts,
    }
    untyped: Any = Sentinel
    sentinels = untyped(several.nodes, sentinel_kwargs=asking, **tls_options(several), **timeouts)
    made: Blocking = sentinels.master_for(several.service, db=several.db, **login)
    return made


def one_server(client: Blocking) -> Blocking:
    """A client for one server: any node of a cluster, for what only servers can be asked. Raises redis.RedisError."""
    if isinstance(client, redis.cluster.RedisCluster):
        found: Blocking = client.get_redis_connection(client.get_random_node())
        return found
    return client


def each_server(client: Blocking) -> list[Blocking]:
    """A client for each server that holds a part of what is kept: a cluster's primaries. Raises redis.RedisError."""
    if isinstance(client, redis.cluster.RedisCluster):
        return [client.get_redis_connection(node) for node in client.get_primaries()]
    return [client]
