"""Every PromQL expression that the chart ships, and the metrics that it names."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import promql_parser
import yaml

from tests.chart.rendering import CHART, render, the

AUTOSCALING = {"router": {"autoscaling": {"enabled": True}}}


def expressions() -> Iterator[tuple[str, str]]:
    """(where, expression) of all dashboards and alerts, Grafana's interval filled in."""
    for path in sorted((CHART / "files" / "dashboards").glob("*.json")):
        for panel in json.loads(path.read_text())["panels"]:
            for target in panel["targets"]:
                yield f"{path.stem}: {panel['title']}", target["expr"].replace("$__rate_interval", "1m")
    for group in yaml.safe_load((CHART / "files" / "alerts.yaml").read_text())["groups"]:
        for rule in group["rules"]:
            yield f"alert {rule['alert']}", rule["expr"]


def names_in(expression: str) -> set[str]:
    """Metrics that an expression selects. Raises ValueError when it is not PromQL."""
    found: set[str] = set()

    def walk(node: Any) -> None:
        if isinstance(node, promql_parser.VectorSelector):
            found.add(str(node.name))
        for child in ("expr", "lhs", "rhs", "vector_selector", "param"):
            inner = getattr(node, child, None)
            if inner is not None and not isinstance(inner, str):
                walk(inner)
        for argument in getattr(node, "args", None) or ():
            walk(argument)

    walk(promql_parser.parse(expression))
    return found


def wanted() -> dict[str, set[str]]:
    """Metric -> where it is asked for; what autoscalers ask for is among them."""
    made: dict[str, set[str]] = {}
    for where, expression in expressions():
        for name in names_in(expression):
            made.setdefault(name, set()).add(where)
    for metric in the(render(AUTOSCALING), "HorizontalPodAutoscaler")["spec"]["metrics"]:
        made.setdefault(metric["pods"]["metric"]["name"], set()).add("autoscaler")
    made.pop("up", None)  # Prometheus makes it
    return made


def exported(scrape: str) -> set[str]:
    """Names of the series in a scrape; a family without samples yet counts, by its type."""
    names = {line.split("{")[0].split()[0] for line in scrape.splitlines() if line and not line.startswith("#")}
    for family, kind in re.findall(r"^# TYPE (\S+) (\S+)", scrape, re.MULTILINE):
        names |= {family, *(f"{family}{end}" for end in ("_bucket", "_count", "_sum") if kind == "histogram")}
    return names
