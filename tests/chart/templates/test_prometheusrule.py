"""templates/prometheusrule.yaml."""

from __future__ import annotations

import yaml

from tests.chart.rendering import CHART, kinds, render, the


def test_the_rules_are_those_of_the_file() -> None:
    """The one that promtool tests."""
    made = the(render({"metrics": {"prometheusRule": {"enabled": True}}}), "PrometheusRule")
    own = (
        (CHART / "files" / "alerts.yaml")
        .read_text()
        .replace('"router"})', '"router", shoal_release="sea/fish-shoal"})')
    )
    assert yaml.safe_load(own) == made["spec"]


def test_there_is_none_unless_asked_for() -> None:
    """Its kind exists only with the operator."""
    assert "PrometheusRule" not in kinds(render())
