"""Where the ranks of a group find each other: a TCPStore owned by the controller."""

from __future__ import annotations

import datetime

import torch.distributed as dist


class RendezvousServer:
    """Owns the store for as long as it lives. No rank owns it, so no rank's death takes it along."""

    def __init__(self, host: str) -> None:
        """Listen on a free port of `host`; torch raises RuntimeError when the address cannot be bound."""
        self.host = host
        self._store = dist.TCPStore(
            host, 0, is_master=True, wait_for_workers=False, timeout=datetime.timedelta(seconds=30)
        )

    @property
    def port(self) -> int:
        return int(self._store.port)
