"""templates/persistentvolumeclaim.yaml."""

from __future__ import annotations

from tests.chart.rendering import kinds, render, the


def test_claim_and_volume_name_each_other() -> None:
    """So nothing else gets the volume."""
    manifests = render({"model": {"source": "hostPath"}})
    claim, volume = the(manifests, "PersistentVolumeClaim"), the(manifests, "PersistentVolume")
    assert volume["metadata"]["name"] == claim["spec"]["volumeName"]
    assert {"namespace": "sea", "name": claim["metadata"]["name"]} == volume["spec"]["claimRef"]


def test_there_is_none_otherwise() -> None:
    """Yours is only named."""
    assert "PersistentVolumeClaim" not in kinds(render())
