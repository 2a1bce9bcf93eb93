"""The inside of a contender: requests come as JSON lines on stdin, answers leave on what was stdout.

Needs the standard library alone, because it runs in every peer's environment.

    request   {"prompts": [[id, ...], ...], "new": n}
    answer    {"prefill": seconds until each has its first token, "decode": seconds from there until each has n,
               "tokens": [[id, ...], ...]}
    error     {"error": "what"}

The first answer, before any request, is {"ready": name with version}.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(slots=True)
class Run:
    """What one run took, in seconds, and gave."""

    prefill: float = 0.0
    decode: float = 0.0
    tokens: list[list[int]] = field(default_factory=list)


Generate = Callable[[list[list[int]], int], Run]


class Split:
    """Times the two phases of a run: `first()` when every sequence has its first token, `end()` when all are done."""

    def __init__(self) -> None:
        self._start = self._first = time.perf_counter()

    def first(self) -> None:
        self._first = time.perf_counter()

    def end(self, tokens: list[list[int]]) -> Run:
        return Run(self._first - self._start, time.perf_counter() - self._first, tokens)


def answers() -> Callable[[dict[str, Any]], None]:
    """Keep stdout for answers: whatever libraries print goes to stderr from now on."""
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def answer(message: dict[str, Any]) -> None:
        out.write(json.dumps(message) + "\n")
        out.flush()

    return answer


def serve(load: Callable[[str, int], tuple[str, Generate]]) -> None:
    """`load(model path, threads)` gives a name and a generator; then requests are served until stdin ends."""
    answer = answers()
    name, generate = load(sys.argv[1], int(sys.argv[2]))
    answer({"ready": name})
    for line in sys.stdin:
        request = json.loads(line)
        answer(asdict(generate(request["prompts"], request["new"])))
