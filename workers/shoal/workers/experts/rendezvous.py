"""Where the ranks of a group find each other: a TCPStore owned by the controller."""

from __future__ import annotations

import datetime

from torch.distributed import TCPStore  # type: ignore[attr-defined]  # torch exports it without saying so

PATIENCE = datetime.timedelta(seconds=30)
"""How long members wait for each other."""


class RendezvousServer:
    """Owns the store for as long as it lives. No rank owns it, so no rank's death takes it along."""

    def __init__(self, host: str) -> None:
        """Listen on a free port of `host`; torch raises RuntimeError when the address cannot be bound."""
        self.host = host
        self._store = TCPStore(host, 0, is_master=True, wait_for_workers=False, timeout=PATIENCE)

    @property
    def port(self) -> int:
        return int(self._store.port)


def connect(host: str, port: int) -> TCPStore:
    """A member's connection to the store; torch raises RuntimeError when nobody listens."""
    return TCPStore(host, port, is_master=False, timeout=PATIENCE)
