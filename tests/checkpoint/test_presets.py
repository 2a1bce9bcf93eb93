"""`shoal.cluster.checkpoint.presets`."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from shoal.cluster.checkpoint.presets import PRESETS, find_preset


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("num_layers", 0),
        ("hidden_size", 100),
        ("intermediate_size", 0),
        ("num_kv_heads", 3),
        ("head_dim", 7),
        ("experts_per_token", 9),
        ("vocab_size", 256),
        ("sliding_window", 0),
    ],
)
def test_impossible_shapes_are_refused(field: str, value: int) -> None:
    """A shape that no model can have is a ValueError naming the field."""
    changes: dict[str, Any] = {field: value}
    with pytest.raises(ValueError, match=field):
        replace(PRESETS["tiny"], **changes)


def test_names_what_there_is() -> None:
    """An unknown preset is refused with the list of names."""
    with pytest.raises(ValueError, match="tiny, small, 20b, 120b"):
        find_preset("7b")


def test_published_control_ids() -> None:
    """With the published vocabulary, turns end with the published ids."""
    assert PRESETS["120b"].eos_token_ids == (200002, 199999, 200012)
