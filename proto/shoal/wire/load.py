"""How a router says what its clients feel, for whoever decides how many workers there should be.

A bounded stream in Redis: routers append about once a second, readers read what came since they last looked. Nobody
need clean up after a router that died, and nobody compares clocks.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

LOADS_KEY = "shoal:loads"
"""A Redis stream; each entry has one field, LOAD_FIELD, with JSON of `RouterLoad`."""

LOAD_FIELD = b"load"

MOST_ENTRIES = 1024
"""Entries that the stream keeps, more or less."""

PERIOD = 1.0
"""Seconds between two entries of one router."""

AUTOSCALE_KEY = "shoal:autoscale"
"""What the autoscaler sees and decided last, as JSON of `AutoscaleEntry`; absent while there is none."""


@dataclass(frozen=True, slots=True)
class RouterLoad:
    """What the requests of one router felt in the last seconds; those that still wait count with what they waited."""

    router_id: str
    requests: int
    """How many had a first token, or wait for it."""
    queue_seconds: float
    """Waited for room in the router, 90th percentile."""
    first_token_seconds: float
    """From their arrival, 90th percentile."""

    def encode(self) -> bytes:
        """JSON."""
        return json.dumps(asdict(self)).encode()

    @classmethod
    def decode(cls, raw: bytes) -> RouterLoad:
        """The record in `raw`; ValueError when it is not one."""
        try:
            fields = json.loads(raw)
            return cls(
                str(fields["router_id"]),
                int(fields["requests"]),
                float(fields["queue_seconds"]),
                float(fields["first_token_seconds"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"a router's load is not readable: {error}") from error


@dataclass(frozen=True, slots=True)
class AutoscaleEntry:
    """The autoscaler as people see it."""

    groups: int
    """Wanted now."""
    least: int
    most: int
    queue_seconds: float
    kv_used: float
    first_token_seconds: float
    doing: str
    """Why nothing is decided at the moment; empty: it looks on."""
    before: int = 0
    """Groups before its last decision; 0: it made none."""
    after: int = 0
    """Groups since that decision."""
    why: str = ""
    """Of that decision."""
    when: float = 0.0
    """Of that decision, unix seconds."""

    def encode(self) -> bytes:
        """JSON."""
        return json.dumps(asdict(self)).encode()

    @classmethod
    def decode(cls, raw: bytes) -> AutoscaleEntry:
        """The record in `raw`; ValueError when it is not one."""
        try:
            return cls(**json.loads(raw))
        except (TypeError, ValueError) as error:
            raise ValueError(f"the autoscaler's record is not readable: {error}") from error
