"""Everything that can go wrong around a cluster. `exit_code` is what the `shoal` command ends with.

ClusterError
├── ConfigError      2  a setting is wrong; the message names its key and where it came from
├── StartError       1  something could not be started; says what, why and what to do
├── NotRunningError  3  there is nothing to talk to
├── CallError        4  a router refused or failed a call
└── UnhealthyError   5  it runs, but cannot serve
"""

from __future__ import annotations

from typing import ClassVar


class ClusterError(Exception):
    """Root of the tree. The message is one line for people: what, where, what to do."""

    exit_code: ClassVar[int] = 1


class ConfigError(ClusterError):
    """A setting is unknown or has a value that it may not have."""

    exit_code = 2


class StartError(ClusterError):
    """A part of the cluster did not start."""


class NotRunningError(ClusterError):
    """No cluster runs here."""

    exit_code = 3


class CallError(ClusterError):
    """A call to a router did not succeed."""

    exit_code = 4


class UnhealthyError(ClusterError):
    """A cluster runs but cannot serve."""

    exit_code = 5
