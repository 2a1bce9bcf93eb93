"""Checkov's policies for Kubernetes: nothing is found that is not explained here."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import yaml

from tests.chart.rendering import Manifest, pod_templates, render
from tests.chart.test_chart import EVERYTHING
from tests.chart.tools import tool

EXPLAINED = {
    (
        "CKV_K8S_8",
        "Pod.sea.fish-shoal-chat",
    ): "the pod of `helm test` says one thing and ends: nothing to probe",
    ("CKV_K8S_9", "Pod.sea.fish-shoal-chat"): "the same",
    ("CKV_K8S_8", "Pod.sea.ray-0"): "the head's autoscaler container is KubeRay's, which takes no probes for it",
    ("CKV_K8S_9", "Pod.sea.ray-0"): "the same",
}
"""Findings that stay, by policy and resource, and why."""
PINNED = {"image": {role: {"digest": f"sha256:{'0' * 64}"} for role in ("router", "worker")}}
"""Which digests to deploy is for whoever built the images to say; that they can be given is checked."""


def in_the_open(manifests: list[Manifest]) -> list[Manifest]:
    """The pods inside custom resources, which checkov does not look into, as pods of their own."""
    return [
        {"apiVersion": "v1", "kind": "Pod",
         "metadata": {**t.get("metadata", {}), "name": f"ray-{number}", "namespace": "sea"}, "spec": t["spec"]}
        for m in manifests if m["kind"] == "RayCluster"
        for number, (_, t) in enumerate(pod_templates(m))
    ]  # fmt: skip


def findings(manifests: list[Manifest], folder: Path) -> list[dict[str, Any]]:
    """What checkov calls failed."""
    path = folder / "rendered.yaml"
    path.write_text(yaml.safe_dump_all(manifests))
    command = [str(tool("checkov")), "-f", str(path), "--framework", "kubernetes", "--skip-download", "-o", "json",
               "--compact", "--quiet"]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=240)
    report = json.loads(done.stdout)
    assert report["summary"]["passed"] > 100, report["summary"]
    print(f"checkov: {report['summary']['passed']} passed, {report['summary']['failed']} failed")
    found: list[dict[str, Any]] = report["results"]["failed_checks"]
    return found


def test_no_policy_is_violated_without_a_reason(tmp_path: Path) -> None:
    """Every finding is in the list above; the pods of Ray are checked too."""
    manifests = render(EVERYTHING | PINNED)
    found = findings([*manifests, *in_the_open(manifests)], tmp_path)
    assert set(EXPLAINED) == {(f["check_id"], f["resource"]) for f in found}
