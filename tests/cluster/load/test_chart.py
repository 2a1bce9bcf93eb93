"""`shoal.cluster.bench.chart`."""

from __future__ import annotations

from xml.etree import ElementTree

import pytest

from shoal.cluster.bench.chart import chart
from shoal.cluster.bench.outcome import Outcome

SVG = "{http://www.w3.org/2000/svg}"


def outcomes(count: int) -> list[Outcome]:
    """Requests that take longer and longer."""
    return [
        Outcome(i, 0, 0.0, 0.0, [(0.01 * (i + 1), 1), (0.02 * (i + 2), 2)], ended=0.03 * (i + 3)) for i in range(count)
    ]


@pytest.mark.parametrize("count", [1, 2, 3000])
def test_curves_rise_to_the_top(count: int) -> None:
    """Well-formed; three curves that go right and up, of a bounded number of points, to the whole."""
    root = ElementTree.fromstring(chart("<a & b>", outcomes(count), 0.05, None))
    curves = root.findall(f"{SVG}polyline")
    assert len(curves) == 3
    for curve in curves:
        points = [tuple(map(float, point.split(","))) for point in curve.attrib["points"].split()]
        assert points == sorted(points, key=lambda p: (p[0], -p[1]))
        assert len(points) <= 1002
        top = min(y for _, y in points)
        assert points[-1][1] == top
    assert "<a & b>" in "".join(root.itertext())


def test_goals_are_lines() -> None:
    """One for each objective that lies on its axis."""
    both = ElementTree.fromstring(chart("x", outcomes(100), 0.05, 0.05))
    none = ElementTree.fromstring(chart("x", outcomes(100), None, None))
    assert [2, 0] == [sum(p.get("class") == "goal" for p in root.iter(f"{SVG}path")) for root in (both, none)]


def test_nothing_is_said_to_be_nothing() -> None:
    """A run without answers is drawn, and says so."""
    text = chart("x", [Outcome(0, 0, 0.0, 0.0, code="UNAVAILABLE")], None, None)
    assert text.count("nothing was measured") == 3
    ElementTree.fromstring(text)
