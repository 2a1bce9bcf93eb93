"""The run's log as a drawing: `python -m shoal.cluster.nano.curve DIRECTORY` reads log.csv and writes curve.svg."""

from __future__ import annotations

import argparse
import csv
import math
from collections.abc import Sequence
from pathlib import Path

_WIDTH, _HEIGHT, _LEFT, _BOTTOM = 640, 280, 48, 36


def curve(rows: Sequence[dict[str, str]]) -> str:
    """SVG of the loss (logarithmic) over the tokens read, a line where a stage begins. `rows` are those of log.csv."""
    tokens = [int(row["tokens"]) / 1e6 for row in rows]
    losses = [float(row["loss"]) for row in rows]
    low, high = math.floor(math.log10(min(losses))), math.ceil(math.log10(max(losses)))

    def x(value: float) -> float:
        return _LEFT + (_WIDTH - _LEFT - 8) * value / tokens[-1]

    def y(value: float) -> float:
        return 8 + (_HEIGHT - _BOTTOM - 8) * (high - math.log10(value)) / (high - low)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" font-family="sans-serif" '
        'font-size="11">',
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="white"/>',
    ]
    for power in range(low, high + 1):
        at = y(10.0**power)
        parts.append(f'<line x1="{_LEFT}" x2="{_WIDTH - 8}" y1="{at:.1f}" y2="{at:.1f}" stroke="#ddd"/>')
        parts.append(f'<text x="{_LEFT - 6}" y="{at + 4:.1f}" text-anchor="end">{10.0**power:g}</text>')
    for previous, row, at in zip([None, *rows], rows, tokens, strict=False):
        if previous is None or previous["stage"] != row["stage"]:
            parts.append(f'<line x1="{x(at):.1f}" x2="{x(at):.1f}" y1="8" y2="{_HEIGHT - _BOTTOM}" stroke="#aaa"/>')
            parts.append(f'<text x="{x(at) + 4:.1f}" y="20" fill="#555">{row["stage"]}</text>')
    points = " ".join(f"{x(at):.1f},{y(loss):.1f}" for at, loss in zip(tokens, losses, strict=True))
    parts.append(f'<polyline points="{points}" fill="none" stroke="#1f6feb" stroke-width="1.2"/>')
    parts.append(f'<text x="{_LEFT}" y="{_HEIGHT - 20}">0</text>')
    parts.append(f'<text x="{_WIDTH - 8}" y="{_HEIGHT - 20}" text-anchor="end">{tokens[-1]:.1f}</text>')
    parts.append(
        f'<text x="{_WIDTH / 2}" y="{_HEIGHT - 6}" text-anchor="middle">loss of the assistant\'s tokens over '
        "million tokens read</text>"
    )
    return "\n".join([*parts, "</svg>"]) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directory", type=Path)
    directory = parser.parse_args().directory
    with (directory / "log.csv").open(newline="", encoding="utf-8") as file:
        (directory / "curve.svg").write_text(curve(list(csv.DictReader(file))), encoding="utf-8")


if __name__ == "__main__":
    main()
