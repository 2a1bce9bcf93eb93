"""What redaction costs and what it finds; the record `redaction`.

Streams come four characters at a time, as models speak; times are this process's own, so a busy machine matters less.
The corpus is `tests/router/safeguards/corpus.py`'s.
"""

from __future__ import annotations

import random
import statistics
import time
from pathlib import Path

from shoal.router.safeguards.detect import KINDS
from shoal.router.safeguards.filter import Filter, Rules
from tests.bench.record import Row, write
from tests.router.safeguards.corpus import CHECKED, MAKERS, scored

_ROOT = Path(__file__).parents[2]
_SIZE = 20_000
_TEXTS = 50_000


def texts() -> dict[str, str]:
    """What is streamed, of 20,000 characters each."""
    readme = (_ROOT / "README.md").read_text()
    draw = random.Random(1)
    made = {
        "prose": " ".join(word for word in readme.split() if word.isalpha()),
        "README.md": readme,
        "Python": (_ROOT / "router/shoal/router/server.py").read_text(),
        "numbers alone": " ".join(str(draw.randrange(10 ** draw.randrange(1, 7))) for _ in range(_SIZE)),
    }
    return {name: (text * (_SIZE // len(text) + 1))[:_SIZE] for name, text in made.items()}


def cost(text: str, rules: Rules) -> float:
    """Milliseconds of CPU for each KB."""
    began, stream = time.process_time(), Filter(rules, "the answer")
    for at in range(0, len(text), 4):
        stream.push(text[at : at + 4])
    stream.finish()
    return (time.process_time() - began) * 1000 / (len(text.encode()) / 1024)


def main() -> None:
    """Measure and write the record."""
    rules, rows = Rules(sorted(KINDS), ()), []
    for name, text in texts().items():
        times = sorted(cost(text, rules) for _ in range(9))
        median = round(statistics.median(times), 3)
        spread = (round(times[2], 3), round(times[-3], 3))
        rows.append(Row(f"streamed, {name}", median, "ms/KB", spread=spread, goal=1.0, met=median <= 1.0))
    score = scored(_TEXTS, seed=1)
    for kind in sorted(MAKERS):
        recall, precision = round(score.recall(kind), 5), round(score.precision(kind), 5)
        rows.append(Row(f"recall, {kind}", recall, "", goal=0.99, met=recall >= 0.99))
        goal = 0.98 if kind in CHECKED else None
        rows.append(
            Row(f"precision, {kind}", precision, "", goal=goal, met=None if goal is None else precision >= goal)
        )
    write("redaction", rows, ["all kinds are looked for; smaller is better for times"])


if __name__ == "__main__":
    main()
