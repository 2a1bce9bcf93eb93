"""A run as one SVG file: which share of requests and tokens came within which time. Written by hand, for two
cumulative curves need no plotting library."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

from shoal.cluster.bench.outcome import Outcome

_WIDTH, _HEIGHT, _LEFT, _TOP, _GAP = 640, 260, 56, 44, 76
_POINTS = 400  # of a curve: more cannot be seen
_STYLE = (
    "text{font:12px sans-serif;fill:#222}.title{font-size:14px}.axis{stroke:#888;fill:none}.grid{stroke:#ddd}"
    ".curve{stroke:#0b6e99;stroke-width:2;fill:none}.goal{stroke:#c0392b;stroke-dasharray:5 4}"
)


def chart(title: str, outcomes: Sequence[Outcome], ttft_goal: float | None, itl_goal: float | None) -> str:
    """The text of the file."""
    answered = [o for o in outcomes if o.code == "OK"]
    panels = (
        ("time to first token", [o.ttft for o in answered if o.ttft is not None], ttft_goal),
        ("time between tokens", [gap for o in answered for gap in o.gaps], itl_goal),
        ("end to end", [o.ended - o.due for o in answered], None),
    )
    height = _TOP + len(panels) * (_HEIGHT + _GAP)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH + _LEFT + 24}" height="{height}">',
        f"<style>{_STYLE}</style>",
        f'<rect width="100%" height="100%" fill="#fff"/><text class="title" x="{_LEFT}" y="22">{escape(title)}</text>',
    ]
    for place, (name, values, goal) in enumerate(panels):
        parts += _panel(name, sorted(values), goal, _TOP + place * (_HEIGHT + _GAP))
    return "\n".join([*parts, "</svg>", ""])


def _panel(name: str, values: list[float], goal: float | None, top: int) -> list[str]:
    """Cumulative: across milliseconds on a logarithmic axis, up the share of `values`, ascending."""
    bottom = top + _HEIGHT
    parts = [
        f'<text x="{_LEFT}" y="{top - 6}">{escape(name)}, share within so many milliseconds</text>',
        f'<path class="axis" d="M{_LEFT} {top}V{bottom}H{_LEFT + _WIDTH}"/>',
    ]
    for share in (0, 0.25, 0.5, 0.75, 1):
        y = bottom - share * _HEIGHT
        parts.append(f'<path class="grid" d="M{_LEFT} {y:.1f}h{_WIDTH}"/>')
        parts.append(f'<text x="{_LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{share:.0%}</text>')
    shown = [value * 1e3 for value in values if value > 0]
    if not shown:
        return [*parts, f'<text x="{_LEFT + 12}" y="{top + 24}">nothing was measured</text>']
    low, high = math.floor(math.log10(shown[0])), math.ceil(math.log10(shown[-1]) + 1e-9)
    high = max(high, low + 1)

    def across(milliseconds: float) -> float:
        return _LEFT + (math.log10(milliseconds) - low) / (high - low) * _WIDTH

    for power in range(low, high + 1):
        x = across(10.0**power)
        parts.append(f'<path class="grid" d="M{x:.1f} {top}V{bottom}"/>')
        parts.append(f'<text x="{x:.1f}" y="{bottom + 18}" text-anchor="middle">{10.0**power:g}</text>')
    if goal is not None and low <= math.log10(goal * 1e3) <= high:
        parts.append(f'<path class="goal" d="M{across(goal * 1e3):.1f} {top}V{bottom}"/>')
    at_once = len(values) - len(shown)  # gaps of nothing: tokens that came in one message
    step = max(1, len(shown) // _POINTS)
    places = sorted({*range(0, len(shown), step), len(shown) - 1})
    points = " ".join(
        f"{across(shown[i]):.1f},{bottom - (at_once + i + 1) / len(values) * _HEIGHT:.1f}" for i in places
    )
    return [*parts, f'<polyline class="curve" points="{points}"/>']
