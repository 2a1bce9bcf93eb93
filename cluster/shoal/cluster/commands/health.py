"""`shoal health`: one part of a cluster asked whether it is well, for probes. Ends with 0 when it is, 1 with a reason.

None of them looks further than the part it names, so that a probe restarts only what is broken.
"""

from __future__ import annotations

import contextlib

from shoal.cluster.client import INFERENCE, health, worker_status
from shoal.cluster.errors import ConfigError, UnhealthyError
from shoal.cluster.own_access import OwnAccess
from shoal.wire.credentials import join_address

_TIMEOUT = 5.0  # seconds


def router(address: str, live: bool, access: OwnAccess | None = None) -> None:
    """Whether a router serves, or with `live` only whether it answers. Raises UnhealthyError."""
    state = health(address, _TIMEOUT, "" if live else INFERENCE, access)
    if state != "SERVING":
        raise UnhealthyError(f"the router at {address} is {state}")


def workers(host: str, first_port: int, ranks: int, access: OwnAccess | None = None) -> None:
    """Whether the `ranks` ranks of this pod serve, ports from `first_port` on. Raises UnhealthyError."""
    for port in range(first_port, first_port + ranks):
        address = join_address(host, port)
        state = worker_status(address, _TIMEOUT, access)
        if state is None or not state.ready:
            raise UnhealthyError(f"the worker at {address} {'does not answer' if state is None else 'is not ready'}")


def redis(url: str) -> None:
    """Whether Redis answers and has read its data. Raises UnhealthyError."""

    from shoal.router.store.away import ABSENT
    from shoal.router.store.blocking import RedisUrlError, connect_blocking

    try:
        with contextlib.closing(connect_blocking(url, _TIMEOUT)) as client:
            client.ping()
    except RedisUrlError as error:
        raise ConfigError(f"the URL of Redis cannot be used: {error}") from error
    except ABSENT as error:
        raise UnhealthyError(f"Redis does not answer: {type(error).__name__}") from error
