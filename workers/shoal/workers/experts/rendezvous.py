"""Where the ranks of a group find each other: a TCPStore owned by the controller."""

from __future__ import annotations

import datetime
import socket

from torch.distributed import TCPStore  # type: ignore[attr-defined]  # torch exports it without saying so

PATIENCE = 30.0
"""Seconds that members wait for each other."""

_ANSWER = 5.0
"""Seconds for an answer of the store itself, which is never busy."""

_TRIES = (0.25, 0.5, 1.0, 2.0, 5.0)
"""Seconds of each try to connect: on a busy machine torch now and then waits in vain, and succeeds the next time."""


class RendezvousServer:
    """Owns the store for as long as it lives. No rank owns it, so no rank's death takes it along."""

    def __init__(self, host: str) -> None:
        """Listen on a free port of `host`; torch raises RuntimeError when the address cannot be bound."""
        self.host = host
        patience = datetime.timedelta(seconds=PATIENCE)
        with socket.create_server((host, 0)) as listening:
            # Ours, because torch's would be of IPv6, and then its server asks the DNS, for up to five seconds and while
            # everybody waits, for the name of each peer that comes; those of IPv4 are in the hosts file.
            port = listening.getsockname()[1]
            self._store = TCPStore(
                host, port, is_master=True, wait_for_workers=False, timeout=patience,
                master_listen_fd=listening.detach(),
            )  # fmt: skip

    @property
    def port(self) -> int:
        return int(self._store.port)


def connect(host: str, port: int) -> TCPStore:
    """A member's connection to the store; raises OSError or RuntimeError when nobody listens.

    torch would knock at a closed door for its whole timeout, so the door is tried first.
    """
    socket.create_connection((host, port), timeout=_ANSWER).close()
    for patience in _TRIES:
        try:
            store = TCPStore(host, port, is_master=False, timeout=datetime.timedelta(seconds=patience))
        except RuntimeError:
            if patience == _TRIES[-1]:
                raise
            continue
        store.set_timeout(datetime.timedelta(seconds=_ANSWER))
        return store
    raise AssertionError("the last try returns or raises")
