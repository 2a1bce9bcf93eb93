"""templates/persistentvolume.yaml."""

from __future__ import annotations

from tests.chart.rendering import kinds, render, the


def test_a_directory_of_the_nodes_is_a_volume_not_a_part_of_a_pod() -> None:
    """Pods with a hostPath of their own would violate even the baseline standard."""
    spec = the(render({"model": {"source": "hostPath", "hostPath": {"path": "/srv/models"}}}), "PersistentVolume")[
        "spec"
    ]
    assert "/srv/models" == spec["hostPath"]["path"]
    assert ["ReadOnlyMany"] == spec["accessModes"]


def test_there_is_none_otherwise() -> None:
    """A claim of yours brings its own volume."""
    assert "PersistentVolume" not in kinds(render())
