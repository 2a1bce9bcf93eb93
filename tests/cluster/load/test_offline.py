"""`shoal bench offline`: the engine alone, timed step by step."""

from __future__ import annotations

import json
from pathlib import Path
from unittest import mock

import pytest
from typer.testing import CliRunner

from shoal.cluster.bench import offline
from shoal.cluster.bench.commands import app
from shoal.cluster.bench.offline import Options, Timing, measure, rows_of
from shoal.cluster.checkpoint.make import make_checkpoint
from shoal.cluster.checkpoint.presets import PRESETS
from shoal.cluster.errors import ConfigError
from shoal.workers.checkpoint.synthetic import SyntheticWeights
from tests.workers.engines import engine_of

OPTIONS = Options("tiny", True, "cpu", (1, 3), (20,), 5, 1, 64, 1, 0)


def test_every_sequence_is_prefilled_and_decoded_to_its_end() -> None:
    """Steps in which all decode are counted, one less than tokens; what the prompts cost is apart."""
    engine = engine_of(SyntheticWeights(PRESETS["tiny"].config()), batch_tokens=64, caching=False)
    before = engine.counters.generated_tokens
    timing = measure(engine, 3, 20, 6)
    assert engine.counters.generated_tokens - before == 18
    assert engine.counters.prompt_tokens == 60
    assert len(timing.steps) == 5
    assert timing.prefill > 0
    engine.check_integrity()


def test_rows_are_medians() -> None:
    """One slow step of many does not show."""
    rows = {row.case: row.value for row in rows_of(4, 10, [Timing(2.0, (0.1, 0.1, 9.0)), Timing(2.0, (0.1, 0.1))])}
    assert rows["batch 4, prompt 10: decode"] == pytest.approx(40)
    assert rows["batch 4, prompt 10: prompts to first tokens"] == 20


def test_the_command_over_a_checkpoint(tmp_path: Path) -> None:
    """Prints and writes a row for each batch and prompt."""
    path = make_checkpoint(tmp_path / "t", "tiny")
    arguments = ["--model", path, "--device", "cpu", "--batch", "1,2", "--prompt", "8,12", "--output", 3, "--rounds", 1]
    ran = CliRunner().invoke(app, ["offline", *map(str, arguments), "--json", str(tmp_path / "o.json")])
    assert ran.exit_code == 0, ran.output
    cases = [row["case"] for row in json.loads((tmp_path / "o.json").read_text())["rows"]]
    for prompt in (8, 12):
        for batch in (1, 2):
            assert f"batch {batch}, prompt {prompt}: decode" in cases
    assert "batch 2, prompt 12: decode" in ran.output


def test_synthetic_weights_say_so() -> None:
    """Whoever reads the table is told that answers are noise."""
    arguments = ["offline", "--model", "tiny", "--synthetic", "--device", "cpu", "--batch", "1", "--prompt", "4"]
    ran = CliRunner().invoke(app, [*arguments, "--output", "2", "--rounds", "1"])
    assert ran.exit_code == 0, ran.output
    assert "synthetic weights: answers are noise" in ran.output


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({"model": "7b"}, "with --synthetic a preset"),
        ({"synthetic": False, "model": "/nowhere"}, "--model: /nowhere: not a checkpoint directory"),
        ({"device": "abacus"}, "--device: "),
        ({"prompts": (1 << 20,)}, "the model holds 131072"),
    ],
)
def test_wrong_options_are_named(changed: dict[str, object], expected: str) -> None:
    """One line each."""
    values = {field: getattr(OPTIONS, field) for field in OPTIONS.__dataclass_fields__}
    with pytest.raises(ConfigError, match=expected):
        offline.run(Options(**{**values, **changed}), lambda _: None)


def test_a_list_of_numbers_is_checked() -> None:
    """Before anything heavy is made."""
    with mock.patch.object(offline, "make_engine", side_effect=AssertionError("too late")):
        ran = CliRunner().invoke(app, ["offline", "--model", "tiny", "--batch", "1,x"])
    assert isinstance(ran.exception, ConfigError)
    assert "--batch: '1,x' is no list of numbers" in str(ran.exception)
