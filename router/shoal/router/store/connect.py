"""From a URL to a client, for one server, a service watched by sentinels, or a cluster.

    redis://[user:password@]host:port[/db]                    one server; rediss:// with TLS
    unix://[user:password@]/path/to.sock[?db=0]               one server on this machine
    redis+sentinel://[user:password@]host:port,host:port/service[/db]
                                                              the service's present primary, asked of the sentinels
    redis+cluster://[user:password@]host:port,host:port       a Redis Cluster; any of its nodes

`rediss+sentinel` and `rediss+cluster` use TLS, to the sentinels too. Options behind `?`:

    ssl_ca_certs, ssl_certfile, ssl_keyfile     files; the system's authorities by default
    ssl_check_hostname                          true unless it says false
    sentinel_username, sentinel_password        for the sentinels themselves

A client connects when it is first used, and gives up in about a second instead of making a request wait.
"""

from __future__ import annotations

import ssl
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

import redis.asyncio
import redis.exceptions
from redis.asyncio.cluster import ClusterNode, RedisCluster
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel
from redis.backoff import ExponentialBackoff

from shoal.router.store.following import (
    FollowingConnection,
    FollowingPrimary,
    follow_in_cluster,
    follow_sentinels,
)
from shoal.router.store.script import Client

SCHEMES = (
    "redis://", "rediss://", "unix://", "redis+sentinel://", "rediss+sentinel://", "redis+cluster://",
    "rediss+cluster://",
)  # fmt: skip

_CONNECTIONS = 128  # a command waits for one of them
_MOST_CONNECTIONS = 4096  # where commands cannot wait: more than a router has requests
_PORTS = {"sentinel": 26379, "cluster": 6379}
_FILES = frozenset({"ssl_ca_certs", "ssl_certfile", "ssl_keyfile"})
_OPTIONS = _FILES | {"ssl_check_hostname", "sentinel_username", "sentinel_password"}


class RedisUrlError(ValueError):
    """A Redis URL cannot be used; the message never shows it, for it may hold a password."""


@dataclass(frozen=True, slots=True)
class Several:
    """A URL that names several servers."""

    kind: str
    """sentinel or cluster."""
    nodes: tuple[tuple[str, int], ...]
    tls: bool
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    service: str = ""
    """Which of the sentinels' services."""
    db: int = 0
    options: dict[str, str] = field(default_factory=dict, repr=False)


def read_several(url: str) -> Several | None:
    """The parts of a sentinel or cluster URL; None for one that names a single server. Raises RedisUrlError.

    >>> read_several("redis+sentinel://u:p%40@a:1,[::1]:2/main/3").nodes
    (('a', 1), ('::1', 2))
    >>> read_several("redis://a:1") is None
    True
    """
    parts = urlsplit(url)
    protocol, plus, kind = parts.scheme.partition("+")
    if not plus:
        return None
    if protocol not in ("redis", "rediss") or kind not in _PORTS:
        raise RedisUrlError(f"the scheme {parts.scheme!r} is none of {', '.join(SCHEMES)}")
    credentials, _, hosts = parts.netloc.rpartition("@")
    username, colon, password = credentials.partition(":")
    nodes = tuple(_node(node, _PORTS[kind]) for node in hosts.split(",") if node)
    if not nodes:
        raise RedisUrlError(f"a {parts.scheme}:// URL must name at least one host")
    service, _, db = parts.path.strip("/").partition("/")
    if kind == "sentinel" and not service:
        raise RedisUrlError(f"a {parts.scheme}:// URL must name the service: {parts.scheme}://host:port/SERVICE")
    if kind == "cluster" and service:
        raise RedisUrlError("a cluster has one database: leave the URL's path empty")
    if db and not db.isdigit():
        raise RedisUrlError("the database behind the service's name must be a number")
    options = dict(parse_qsl(parts.query))
    if unknown := sorted(set(options) - _OPTIONS):
        raise RedisUrlError(f"the option {unknown[0]!r} is none of {', '.join(sorted(_OPTIONS))}")
    return Several(
        kind=kind,
        nodes=nodes,
        tls=protocol == "rediss",
        username=unquote(username) or None,
        password=unquote(password) if colon else None,
        service=unquote(service),
        db=int(db or 0),
        options=options,
    )


def check(url: str) -> None:
    """Raises RedisUrlError when `connect` would."""
    if not url.startswith(SCHEMES):
        raise RedisUrlError(f"it must begin with one of {', '.join(SCHEMES)}")
    try:
        if read_several(url) is None:
            redis.asyncio.ConnectionPool.from_url(url)
    except RedisUrlError:
        raise
    except (ValueError, TypeError, redis.exceptions.RedisError) as error:
        raise RedisUrlError(f"it cannot be read ({type(error).__name__})") from None  # the text may show a password


def connect(url: str, timeout: float = 2.0) -> Client:
    """A client for whatever the URL names; a command is given up after `timeout` seconds. Raises RedisUrlError."""
    check(url)
    several = read_several(url)
    timeouts: dict[str, Any] = {"socket_timeout": timeout, "socket_connect_timeout": min(1.0, timeout)}
    retry = Retry(ExponentialBackoff(cap=0.2, base=0.02), 2)
    if several is None:
        pool = redis.asyncio.BlockingConnectionPool.from_url(
            url, max_connections=_CONNECTIONS, timeout=timeout, retry=retry, **timeouts
        )
        if pool.connection_class is redis.asyncio.SSLConnection:
            pool.connection_class = FollowingConnection
        return redis.asyncio.Redis.from_pool(pool)
    if several.kind == "cluster":
        nodes = [ClusterNode(host, port) for host, port in several.nodes]
        login: dict[str, Any] = {"username": several.username, "password": several.password}
        cluster: dict[str, Any] = {**login, **tls_options(several), **timeouts}
        # After a failover the cluster's map is asked for again between the tries.
        again = Retry(ExponentialBackoff(cap=0.3, base=0.05), 3)
        made = RedisCluster(
            startup_nodes=nodes, retry=again, require_full_coverage=False, max_connections=_MOST_CONNECTIONS, **cluster
        )
        if several.tls:
            follow_in_cluster(made)
        return made
    asking: dict[str, Any] = {
        "username": several.options.get("sentinel_username"),
        "password": several.options.get("sentinel_password"),
        "retry": Retry(ExponentialBackoff(cap=0.2, base=0.02), 1),  # the library's own takes many seconds
        **tls_options(several),
        **timeouts,
    }
    untyped: Any = Sentinel
    sentinel = untyped(several.nodes, sentinel_kwargs=asking, **tls_options(several), **timeouts)
    following: dict[str, Any] = {}
    if several.tls:
        follow_sentinels(sentinel)
        following["connection_class"] = FollowingPrimary
    primary: redis.asyncio.Redis = sentinel.master_for(
        several.service,
        username=several.username,
        password=several.password,
        db=several.db,
        retry=retry,
        max_connections=_MOST_CONNECTIONS,
        **following,
    )
    return primary


def _node(text: str, port: int) -> tuple[str, int]:
    try:
        found = urlsplit(f"//{text}")
        if not found.hostname:
            raise ValueError(text)
        return found.hostname, found.port or port
    except ValueError:
        raise RedisUrlError("hosts must be a list of host:port") from None


def tls_options(several: Several) -> dict[str, Any]:
    """What its connections are made with; nothing in the clear."""
    if not several.tls:
        return {}
    files = {
        key: value for key, value in several.options.items() if key in ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile")
    }
    checked = several.options.get("ssl_check_hostname", "true").lower() not in ("false", "0", "no")
    return {"ssl": True, "ssl_cert_reqs": ssl.CERT_REQUIRED, "ssl_check_hostname": checked, **files}
