"""The committed model's vocabulary."""

from __future__ import annotations

from pathlib import Path

import pytest

from shoal.cluster.nano.render import Desk
from shoal.router.tokenizer import Tokenizer

NANO_DIR = Path(__file__).parents[2] / "deploy" / "models" / "nano"


@pytest.fixture(scope="session")
def desk() -> Desk:
    """Renders with the committed vocabulary."""
    return Desk(Tokenizer.load(NANO_DIR))
