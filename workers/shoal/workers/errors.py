"""Everything that the world can do to a worker.

WorkerError
├── ConfigError        a setting is wrong; the message names its key
├── RequestError       the request itself is wrong (refused as invalid)
├── OverloadedError    no room now (refused, try again)
├── StaleAttemptError  a newer attempt of the request was seen
├── NotReadyError      not in a group, or shutting down
├── ConstraintError    a constraint leaves no token to choose, or costs more than it may
├── ExchangeError      a rank died, hung, or sent what was not agreed; the step never happened
├── StaleEpochError    a newer epoch was seen: whoever asks for this one is late
├── PeerError          a peer did not give an expert as it is
├── NoRoomError        the experts asked for do not fit into this worker's memory
└── UnfitError         the self-test gave other logits than it must
"""

from __future__ import annotations


class WorkerError(Exception):
    """Root of the tree."""


class ConfigError(WorkerError):
    """A setting is wrong."""


class RequestError(WorkerError):
    """The request cannot be served as it is."""


class OverloadedError(WorkerError):
    """There is no room now."""


class StaleAttemptError(WorkerError):
    """A newer attempt of the same request was seen."""


class NotReadyError(WorkerError):
    """The worker does not serve now."""


class ConstraintError(WorkerError):
    """A sequence cannot go on under its constraint: a dead end of the grammar, or one of the bounds on its cost."""


class ExchangeError(WorkerError):
    """An exchange between ranks did not complete as agreed."""


class StaleEpochError(WorkerError):
    """A newer epoch was asked for already."""


class PeerError(WorkerError):
    """A peer that was asked for experts did not give them, or not as they are."""


class NoRoomError(WorkerError):
    """What should be held does not fit."""


class UnfitError(WorkerError):
    """This worker, or a peer whose experts it uses, computes other numbers than it must."""
