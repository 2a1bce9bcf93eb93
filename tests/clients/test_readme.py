"""The README's snippets, run as they stand against a running router."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from tests.clients.stage import Stage, answer

README = Path(__file__).parents[2] / "README.md"
MARKED = re.compile(r"<!-- snippet: ([\w-]+) -->\n```(\w+)\n(.*?)```", re.DOTALL)
SNIPPETS = {name: (language, code) for name, language, code in MARKED.findall(README.read_text())}


def test_the_readme_shows_ways_in() -> None:
    """At least one, so that this file tests something."""
    assert {"grpc", "openai", "langchain", "curl"} <= set(SNIPPETS)


@pytest.mark.parametrize("name", sorted(SNIPPETS))
def test_a_snippet_works(stage: Stage, name: str) -> None:
    """It runs without an error and prints what the model said. Only addresses and the model's name are put in."""
    language, code = SNIPPETS[name]
    stage.says(answer("A shoal is a group of fish."))
    for written, meant in (
        ("127.0.0.1:50051", stage.listening.address),
        ("127.0.0.1:8000", stage.listening.http),
        ("gpt-oss-20b", stage.model),
    ):
        code = code.replace(written, meant)
    if language == "python":
        words: list[str] = []

        def hear(*said: object, end: str = "\n", flush: bool = False) -> None:
            words.append(" ".join(map(str, said)) + end)

        # The router logs to this process's stdout meanwhile, so what is printed is heard at its source.
        exec(compile(code, f"README.md, {name}", "exec"), {"print": hear})
        printed = "".join(words)
    else:
        shell = ["bash", "-euo", "pipefail", "-c", code]
        printed = subprocess.run(shell, capture_output=True, text=True, timeout=60, check=True).stdout

    assert "A shoal is a group of fish." in printed
