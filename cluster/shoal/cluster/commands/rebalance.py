"""`shoal rebalance`."""

from __future__ import annotations

from shoal.cluster.admin_client import admin
from shoal.cluster.config import Settings


def run(settings: Settings, group: str, router: str | None = None) -> None:
    """Move experts by their load and say what it gains. Raises ClusterError."""
    with admin(settings, router) as client:
        found = client.rebalance(group).groups
    for balance in found:
        was = f"group {balance.group}: fullest rank at {balance.before:.2f} times the mean"
        print(f"{was}, {balance.after:.2f} after {balance.moves} moves" if balance.moves else f"{was}: left as it is")
    if not found:
        print("no group has had enough load in its epoch to go by")
