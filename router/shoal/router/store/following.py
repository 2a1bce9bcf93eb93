"""A connection over TLS that reads its certificates anew each time it is made, so that they can be renewed."""

from __future__ import annotations

from redis.asyncio import SSLConnection


class FollowingConnection(SSLConnection):
    """redis-py keeps what it read first for the life of a connection object, which outlives its sockets."""

    async def _connect(self) -> None:
        self.ssl_context.context = None
        await super()._connect()  # type: ignore[no-untyped-call]  # redis-py does not say
