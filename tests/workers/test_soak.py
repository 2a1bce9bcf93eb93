"""A short form of `make soak`."""

from __future__ import annotations

from pathlib import Path

from tests.workers.soak import Soak


def test_anything_at_any_time_changes_no_token(tiny: Path) -> None:
    """Random submits, forks, cancels and preemptions: every finished request equals its solo run."""
    soak = Soak(tiny, seed=11)
    soak.run(requests=600)
    for happened in ("cancelled", "preemptions", "cached_tokens", "accepted_guesses", "stop_token", "length"):
        assert soak.counts[happened] > 0, f"no {happened} in {dict(soak.counts)}"


def test_anything_at_any_time_in_steps_that_overlap(tiny: Path) -> None:
    """The same where the device goes on before the host knows: what is computed beyond an end leaves nothing behind."""
    soak = Soak(tiny, seed=12, overlap=True)
    soak.run(requests=200)
    for happened in ("cancelled", "preemptions", "cached_tokens", "stop_token", "stop_bytes", "length"):
        assert soak.counts[happened] > 0, f"no {happened} in {dict(soak.counts)}"
