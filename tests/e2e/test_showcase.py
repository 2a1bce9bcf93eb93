"""What the demonstration asks, asked of a whole cluster that serves the trained model."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from shoal.cluster import demo, showcase
from shoal.cluster.client import RouterClient
from tests.e2e.served import serving
from tests.nano.conftest import NANO_DIR


def test_every_answer_is_right(tmp_path: Path) -> None:
    """A sum, recall from Redis, a tool call and its result, JSON after a schema: two workers share the experts."""
    with serving(NANO_DIR, tmp_path, RAY_AUTH_MODE="disabled") as served:
        client = RouterClient(served.wait_until_ready().router)
        try:
            showcase.play(client, Console(quiet=True), demo.report)
        finally:
            client.close()
