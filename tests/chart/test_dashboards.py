"""Dashboards and alerts ask for what is exported. A scrape of a running cluster is compared in tests/e2e."""

from __future__ import annotations

import re
import subprocess
import sys

from prometheus_client import CollectorRegistry, generate_latest

from shoal.proto.v1 import worker_pb2 as pb
from shoal.router.metrics import Metrics
from shoal.workers.experts.exchange import Traffic
from shoal.workers.metrics import Readings, WorkerCollector
from tests.chart.expressions import exported, expressions, names_in, wanted
from tests.chart.rendering import CHART


def test_the_dashboards_are_what_the_code_makes() -> None:
    """Nobody edits JSON."""
    check = [sys.executable, "helm/dashboards.py", "--check"]
    done = subprocess.run(check, cwd=CHART.parents[1], capture_output=True, text=True, check=False)
    assert 0 == done.returncode, done.stderr


def test_every_expression_is_promql_and_names_a_metric() -> None:
    """Parsed; the parser finds an unclosed parenthesis."""
    assert {} == {where: expression for where, expression in expressions() if not names_in(expression)}
    assert len(list(expressions())) > 50


def test_every_metric_that_is_asked_for_is_exported() -> None:
    """By a router's registry or a worker's collector, autoscalers' included."""
    registry = CollectorRegistry()
    registry.register(WorkerCollector(Readings(pb.GetStatusResponse, lambda: "idle", Traffic)))
    there = exported(generate_latest(Metrics().registry).decode()) | exported(generate_latest(registry).decode())
    assert {} == {name: where for name, where in wanted().items() if name not in there}


def test_a_metric_that_is_not_there_is_found() -> None:
    """The check can fail."""
    assert {"nosuch_total", "other"} == names_in("sum(rate(nosuch_total[1m])) / max by (a) (other)")
    assert {"a_bucket", "a_sum", "a_count", "a"} == exported("# TYPE a histogram\n")


def test_every_panel_is_about_the_releases_that_were_chosen() -> None:
    """Two clusters in one Prometheus are not added up."""
    panels = [(where, expression) for where, expression in expressions() if not where.startswith("alert")]
    selectors = [(where, expression.count("{"), len(re.findall(r"\b(?:shoal|gen_ai)_\w+\{shoal_release=~", expression)))
                 for where, expression in panels]  # fmt: skip
    assert [] == [where for where, all_of_them, chosen in selectors if not chosen or chosen != all_of_them]
