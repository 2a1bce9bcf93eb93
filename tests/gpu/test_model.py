"""`tests/gpu/model.py`: the script that measures a GPU, run tiny on a CPU, so that it works the day there is one."""

from __future__ import annotations

import argparse
import itertools
import json
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from shoal.cluster.plan.gpu import GPUS
from tests.gpu import device, graphs, groups, layers, model, peer, seats, speed
from tests.gpu.extent import FULL, TINY, sizes_for
from tests.gpu.idle import idle_share
from tests.gpu.parts import Part
from tests.gpu.telling import Teller, read
from tests.workers.engines import engine_of

SCRIPT = Path(model.__file__)


@pytest.fixture
def tell(tmp_path: Path) -> Teller:
    """Into `said` of the test's directory."""
    return Teller(tmp_path / "said")


def rows_of(tmp_path: Path) -> dict[str, dict[str, Any]]:
    """What was told, by case."""
    return {row["case"]: row for row in read(tmp_path / "said").rows}


def test_the_script_runs_its_parts_and_writes_a_record(tmp_path: Path) -> None:
    """As a process: device and layers (in Triton's interpreter), every check passed, each part named."""
    out = tmp_path / "record.json"
    command = [sys.executable, str(SCRIPT), "--small", "--only", "device", "layers", "--out", str(out)]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    record = json.loads(out.read_text())
    assert record["name"] == "gpu-model"
    assert ["device", "layers"] == [part["part"] for part in record["parts"]]
    assert all(check["passed"] for check in record["checks"])
    checked = {check["check"] for check in record["checks"]}
    wanted = {f"{step}, layer {n}, experts" for step in ("prompts", "decode") for n in range(TINY.layers)}
    assert (
        wanted | {"prompts, logits", "decode, layer 0, sliding attention", "decode, layer 1, full attention"} <= checked
    )
    assert {"copy", "bf16 matmul of the vendor's library"} == {row["case"] for row in record["rows"]}
    assert record["machine"]["gpu"] is None


def test_without_a_gpu_it_says_so() -> None:
    """And how to try it."""
    if torch.cuda.is_available():
        pytest.skip("there is a GPU here: the script would run")
    ran = subprocess.run([sys.executable, str(SCRIPT)], capture_output=True, text=True)
    assert ran.returncode == 2
    assert "torch sees no CUDA device; --small checks the script without one" in ran.stderr


def arguments(tmp_path: Path, **changed: Any) -> argparse.Namespace:
    """A small run of everything."""
    known = {"out": tmp_path / "record.json", "small": True, "seconds": 600.0, "only": None}
    return argparse.Namespace(**{**known, **changed})


def test_what_there_is_no_time_for_is_left_out_with_the_reason(tmp_path: Path) -> None:
    """No part begins that cannot end; the record says which, and there is one."""
    record = model.run_all(arguments(tmp_path, seconds=1.0))
    assert [part.name for part in model.PARTS] == [part["part"] for part in record["parts"]]
    assert all("s were left of 1, it takes at least" in part["skipped"] for part in record["parts"])
    assert record == json.loads((tmp_path / "record.json").read_text())
    assert not record["rows"]


def test_a_part_that_takes_too_long_is_ended(tmp_path: Path) -> None:
    """With all that it started; the record says so."""
    before = set(psutil.Process().children(recursive=True))
    begin = time.monotonic()
    told, problem = model.launch_part(Part("groups", 0.3, 0.0), arguments(tmp_path), {}, 0.3)
    assert "was ended after 0 s" in problem
    assert time.monotonic() - begin < 30
    assert not told.rows
    assert not [p for p in set(psutil.Process().children(recursive=True)) - before if p.is_running()]


def test_a_part_that_breaks_is_reported(tmp_path: Path) -> None:
    """With the end of what it said on stderr; a part there is not breaks at once."""
    _, problem = model.launch_part(Part("nothing", 60, 0.0), arguments(tmp_path), {}, 60)
    assert problem.startswith("ended with 1: ")
    assert "KeyError: 'nothing'" in problem


def test_a_model_has_a_row_for_every_case(tmp_path: Path, tell: Teller) -> None:
    """Decode by batch and context, prefill by length, saturated load, start-up; beside what would bound them."""
    gpu = replace(GPUS["h200"], bandwidth=1e12, flops=1e13)
    speed.measure(speed.build("large", TINY, gpu, False, tell), TINY, tell)
    rows, name = rows_of(tmp_path), TINY.large.name
    for batch, context in itertools.product(TINY.batches, TINY.contexts):
        row = rows[f"{name} decode, batch {batch}, context {context}"]
        assert row["ratio"] == pytest.approx(row["value"] / row["peer_value"], rel=1e-3)
        assert row["value"] == pytest.approx(batch / row["step_ms"] * 1e3, rel=1e-3)
        assert 4 <= row["experts_hit"] <= min(8, 4 * batch)
        assert "goal" not in row
    for prompt in TINY.prompts:
        assert rows[f"{name} prefill of {prompt}"]["ratio"] > 0
    assert rows[f"{name} saturated, 12 in, 6 out"]["batch"] == TINY.most_saturated
    assert {"kv", "read", "prepare"} <= set(rows[f"{name} start, synthetic in memory"]["phases"])
    assert any("the profiler saw no work on the device" in note for note in read(tmp_path / "said").notes)


def test_what_does_not_fit_is_a_note(tmp_path: Path, tell: Teller) -> None:
    """No row, no guess."""
    built = speed.build("small", TINY, None, False, tell)
    speed.measure(built, replace(TINY, batches=(1, 1000), contexts=(40,), prompts=(5000,)), tell)
    told = read(tmp_path / "said")
    assert not any("1000" in row["case"] or "5000" in row["case"] for row in told.rows)
    for case in ("decode, batch 1000, context 40", "prefill of 5000"):
        assert f"{TINY.small.name} {case}: does not fit the memory that is left for KV" in told.notes
    assert all("peer" not in row for row in told.rows), "no bound without measured rates"


def test_goals_are_those_of_the_issue(tmp_path: Path, tell: Teller) -> None:
    """Reached or not, they stand in the row; lower is better where that is said."""
    tell.row("a", 300.0, "tok/s", goal=300.0)
    tell.row("b", 299.0, "tok/s", goal=300.0, bound=600.0)
    tell.row("c", 0.02, "share", goal=0.03, least=False)
    rows = rows_of(tmp_path)
    assert [True, False, True] == [rows[case]["met"] for case in "abc"]
    assert rows["b"]["ratio"] == pytest.approx(0.498, abs=1e-3)
    assert FULL.batches == (1, 4, 16, 64, 256)
    assert FULL.contexts == (1024, 8192)
    assert FULL.prompts == (1024, 8192, 32768)


def test_all_parts_fit_into_ten_minutes() -> None:
    """Their limits may add up to more: what comes last is then left out. What each needs at least does not."""
    assert sum(part.least for part in model.PARTS) < model.TOTAL < 600


def test_seated_sequences_go_on_like_others(tmp_path: Path) -> None:
    """Their blocks are theirs, their windows slide, and the engine's books balance at every step."""
    source = TINY.source(TINY.large)
    engine = engine_of(source, kv_tokens=1024, batch_tokens=64, batch_size=4, caching=False)
    for i, context in enumerate((1, 16, 17, 200)):
        seats.seat(engine, str(i), context, 1 if context > 1 else 0, 20)
    assert [1] * 4 == [sequence.pending for sequence in engine.running]
    for _ in range(10):
        engine.step()
        engine.check_integrity()
    assert engine.counters.generated_tokens == 40
    assert engine.counters.preemptions == 0
    seats.clear(engine)
    assert not engine.has_work


def test_the_twin_finds_a_wrong_expert(tmp_path: Path, tell: Teller) -> None:
    """Equal engines pass; one expert's scales off by a power of two, and its layer's check fails, no other's."""
    engines = layers.engines_of(TINY, "native", "torch")
    layers.check(engines, TINY, tell)
    assert all(check["passed"] for check in read(tmp_path / "said").checks)
    wrong = layers.engines_of(TINY, "torch")["torch"]
    wrong.model.experts[1].held.down.scales[:] += 1
    layers.check({"native": engines["native"], "torch": wrong}, TINY, Teller(tmp_path / "other"))
    failed = [check["check"] for check in read(tmp_path / "other").checks if not check["passed"]]
    assert ["prompts, layer 1, experts", "decode, layer 1, experts"] == failed


def test_two_ranks_give_the_tokens_of_one(tmp_path: Path, tell: Teller) -> None:
    """As plain processes over synthetic weights, their exchange through the host."""
    groups.compare(TINY, tell)
    (check,) = read(tmp_path / "said").checks
    assert check["passed"]
    assert check["staged"]
    assert check["tokens"] == 48


def test_recorded_and_overlapping_steps_give_the_tokens_of_plain_ones(
    tmp_path: Path, tell: Teller, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And a step that begins with the wrong token is seen."""
    graphs.compare(TINY, tell)
    checks = read(tmp_path / "said").checks
    assert [True] * 5 == [check["passed"] for check in checks]
    assert 0 < checks[0]["replays"] < checks[1]["replays"]
    monkeypatch.setattr("shoal.workers.model.decoder.fill_in", lambda *_: None)
    graphs.compare(TINY, Teller(tmp_path / "other"))
    assert [True, False, True, True, True] == [check["passed"] for check in read(tmp_path / "other").checks]


def test_transformers_runs_on_the_same_weights(tmp_path: Path, tell: Teller) -> None:
    """In fp32 both say the same tokens, so it is the same model."""
    peer.compare(TINY, tell)
    rows = rows_of(tmp_path)
    assert len(rows) == 4
    assert all(row["same_tokens"] == row["of"] for row in rows.values())


def test_a_start_is_told_by_phase(tmp_path: Path, tell: Teller) -> None:
    """Written, opened, prepared, first token; nothing stays on the disk."""
    device.start(TINY, tell)
    rows = rows_of(tmp_path)
    row = rows[f"{TINY.small.name} from a disk, just written, to the first token"]
    assert row["value"] == pytest.approx(row["open"] + row["engine"] + row["first_token"], rel=1e-3)
    assert {"kv", "read", "prepare"} <= set(row["phases"])


@given(st.lists(st.tuples(st.integers(0, 60), st.integers(1, 20)), min_size=1, max_size=20))
def test_idle_time_is_what_nothing_covers(pairs: list[tuple[int, int]]) -> None:
    """Counted unit by unit."""
    spans = [(begin, begin + length) for begin, length in pairs]
    covered = {unit for begin, end in spans for unit in range(begin, end)}
    first, last = min(begin for begin, _ in spans), max(end for _, end in spans)
    expected = 1 - len(covered) / (last - first)
    assert expected == pytest.approx(idle_share([(float(a), float(b)) for a, b in spans]))


def test_a_line_that_was_cut_off_is_left_out(tmp_path: Path) -> None:
    """A part that is killed in the middle of a word spoils nothing before it."""
    Teller(tmp_path / "said").note("whole")
    with (tmp_path / "said").open("a") as file:
        file.write('{"row": {"case": "ha')
    assert ["whole"] == read(tmp_path / "said").notes
    assert ["whole"] == read(tmp_path / "said").notes
    assert not read(tmp_path / "nowhere").rows


def test_errors_of_rows_are_relative() -> None:
    """The worst row's; what is not finite is infinitely wrong; the order of chosen experts does not matter."""
    a = torch.tensor([[3.0, 4.0], [1.0, 0.0]])
    assert layers.row_error(a, a) == 0
    assert layers.row_error(a, torch.tensor([[3.0, 4.0], [1.0, 0.1]])) == pytest.approx(0.1)
    assert layers.row_error(a, torch.tensor([[3.0, float("nan")], [1.0, 0.0]])) == float("inf")
    ids = torch.tensor([[1, 2], [3, 4]])
    assert layers.same_choices(ids, torch.tensor([[2, 1], [4, 5]])) == 0.75


def test_an_engine_for_measuring_finds_nothing_in_a_cache() -> None:
    """Everything that is asked is computed."""
    assert not sizes_for(TINY.large.config(), TINY, batch=2, kv_tokens=64).caching
