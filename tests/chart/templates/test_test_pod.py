"""templates/tests/pod.yaml."""

from __future__ import annotations

from tests.chart.rendering import render, the


def test_helm_test_makes_one_real_chat() -> None:
    """Over gRPC, at the service, with the product's own command, within the time that was given."""
    pod = the(render({"test": {"timeoutSeconds": 30}, "router": {"service": {"grpcPort": 9000}}}), "Pod")
    [container] = pod["spec"]["containers"]
    assert "test" == pod["metadata"]["annotations"]["helm.sh/hook"]
    assert ["shoal", "chat"] == container["command"]
    assert {"--address=fish-shoal:9000", "--timeout=30"} <= set(container["args"])
    assert 30 < pod["spec"]["activeDeadlineSeconds"]
