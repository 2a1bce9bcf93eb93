"""The drawing of a run."""

from __future__ import annotations

from xml.etree import ElementTree

from shoal.cluster.nano.curve import curve


def test_the_curve_is_a_drawing_of_every_row() -> None:
    """Well-formed SVG with a point per row and a word per stage."""
    rows = [
        {"tokens": "1000", "loss": "5.0", "stage": "one"},
        {"tokens": "2000", "loss": "0.5", "stage": "one"},
        {"tokens": "3000", "loss": "0.05", "stage": "two"},
    ]
    root = ElementTree.fromstring(curve(rows))  # our own text
    names = {element.tag.rsplit("}", 1)[1]: element for element in root.iter()}
    assert len(rows) == len(names["polyline"].attrib["points"].split())
    assert {"one", "two"} <= {element.text for element in root.iter()}
