"""A new version under load: no stream is lost."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.namespace import in_a_network_of_its_own, needs_the_tools

pytestmark = needs_the_tools


@pytest.fixture(scope="module")
def seen(tiny_model: Path) -> Iterator[dict[str, Any]]:
    """What clients saw while everything was replaced."""
    with in_a_network_of_its_own("tests.e2e.rolling", tiny_model, patience=900) as told:
        yield told


def test_no_stream_fails(seen: dict[str, Any]) -> None:
    """While a router, both workers and the head are replaced, one after the other."""
    assert [] == seen["failed"]
    assert seen["streams"] > 20


def test_every_stream_says_what_it_says_undisturbed(seen: dict[str, Any]) -> None:
    """Token by token, also when it moved to another worker in the middle."""
    assert [] == seen["different"]


def test_every_pod_had_drained_and_ended_within_its_grace_period(seen: dict[str, Any]) -> None:
    """The hooks end well, and nothing had to be killed."""
    assert {"router21": 0, "worker11": 0, "worker12": 0} == seen["hooks"]
    assert [] == seen["killed"]
