"""`llama-index-llms-openai-like`, in the environment of its own that `make setup` fills."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.clients import llama_index_program
from tests.clients.stage import Stage, answer, call

PYTHON = Path(sys.prefix) / "clients" / "bin" / "python"


@pytest.mark.skipif(not PYTHON.exists(), reason="made by `make setup`: LlamaIndex needs an older openai than the rest")
def test_llama_index(stage: Stage) -> None:
    """Chat whole and in pieces, completion, and a tool call. The model's words are scripted."""
    stage.says(answer("Hello!"), answer("Hello!"), answer("Hello!"), call("weather", '{"city":"Oslo"}'))
    ran = subprocess.run(
        [str(PYTHON), str(llama_index_program.__file__), stage.url, stage.model],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    said = json.loads(ran.stdout)

    assert [said["chat"], said["stream"], said["complete"]] == ["Hello!"] * 3
    assert said["calls"] == [["weather", {"city": "Oslo"}]]
