"""Whatever values the schema allows: they render to valid manifests, or are refused by the key that is wrong."""

from __future__ import annotations

import os
import re

import pytest
import yaml

from tests.chart import rules, schemas
from tests.chart.contradictions import contradictions
from tests.chart.pod_security import violations
from tests.chart.random_values import random_values
from tests.chart.rendering import CHART, RefusedError, pod_templates, render, render_oldest, without_chance
from tests.chart.templates.test_configmap import taken

SETS = int(os.environ.get("SHOAL_CHART_SETS", "40"))
"""Sets that must render; `make chart` asks for 500."""


def test_random_values_render_valid_manifests_or_are_refused_by_key() -> None:
    """Every set that does not contradict itself renders, and every other one is refused with one of its keys."""
    defaults = yaml.safe_load((CHART / "values.yaml").read_text())
    rendered = refused = seed = 0
    while rendered < SETS:
        seed += 1
        values = random_values(seed)
        wrong = contradictions(values, defaults)
        if wrong:
            with pytest.raises(RefusedError, match="|".join(re.escape(key) for key in wrong)):
                render(values)
            refused += 1
            continue
        manifests = render(values)
        rendered += 1
        version = schemas.KUBERNETES[seed % len(schemas.KUBERNETES)]
        found = [p for m in manifests for p in schemas.problems(m, version)]
        found += rules.problems(manifests, rules.named_outside(values))
        found += [problem for m in manifests for _, t in pod_templates(m) for problem in violations(t)]
        assert [] == found, f"set {seed}"
        taken(manifests)
    print(f"{rendered} random sets rendered, {refused} refused")
    assert refused > 0, "no set contradicted itself: the generator is too tame"


def test_both_helms_render_random_values_alike() -> None:
    """Helm 3.10, as `helm template`, makes the same manifests as Helm 4."""
    defaults = yaml.safe_load((CHART / "values.yaml").read_text())
    compared = seed = 0
    while compared < SETS // 5:
        seed += 1
        values = random_values(seed)
        if not contradictions(values, defaults):
            compared += 1
            assert without_chance(render(values)) == without_chance(render_oldest(values, "1.30.0")), f"set {seed}"
