"""Bad values are refused with the key's name, by the schema or by a check of the templates."""

from __future__ import annotations

from typing import Any

import pytest

from tests.chart.rendering import RefusedError, render, render_oldest

BAD = [
    ("expertParallel.size", 0), ("expertParallel.size", "4"), ("expertParallel.size", 257),
    ("expertParallel.groups", 0), ("model.source", "ftp"), ("model.name", "../etc"), ("model.objectStore.uri", "ftp://x"),
    ("worker.device", "tpu"), ("worker.threads", 0), ("worker.gpuResource", "gpu"), ("worker.shmSize", "lots"),
    ("worker.drainSeconds", -1), ("worker.resources", {"requests": {"gpu": "1"}}), ("worker.topology.mode", "maybe"),
    ("router.replicas", 0), ("router.service.grpcPort", 70000), ("router.service.type", "ExternalName"),
    ("redis.mode", "none"), ("redis.external.address", "no port"), ("image.router.digest", "sha256:short"),
    ("networkPolicy.clients", [{"podselector": {}}]), ("config.router", {"max_runing": 3}),
    ("config.worker", {"kv_tokens": "many"}), ("config.audit.directory", "/srv"),
    ("audit.volume", "hostPath"), ("audit.sizeLimit", "-1Gi"), ("tracing.endpoint", "collector"),
    ("config.router", {"port": 1}), ("securityContext.runAsUser", 0),
    ("worker.extendedResources", {"rdma/hca": 0}), ("config.worker.graphs", "yes"),
    ("metrics.serviceMonitor.interval", "often"), ("nosuchkey", 1), ("router.autoscaling.maxReplicas", 0),
]  # fmt: skip
CONTRADICTING: list[tuple[str, dict[str, Any]]] = [
    ("config.cluster.spares", {"config": {"cluster": {"spares": 1}}, "worker": {"ranksPerPod": 2},
                               "expertParallel": {"size": 2}}),
    ("worker.extendedResources", {"worker": {"extendedResources": {"nvidia.com/gpu": 8}}}),
    ("expertParallel.size", {"expertParallel": {"size": 6}, "worker": {"ranksPerPod": 4}}),
    ("audit.volume", {"audit": {"enabled": True}}),
    ("audit.enabled", {"audit": {"volume": "emptyDir"}}),
    ("audit.claimName", {"audit": {"enabled": True, "volume": "claim"}}),
    ("audit.claimName", {"audit": {"enabled": True, "volume": "emptyDir", "claimName": "c"}}),
    ("audit.keySecret", {"audit": {"keySecret": "s"}}),
    ("audit.keySecret", {"audit": {"enabled": True, "volume": "emptyDir"}, "config": {"audit": {"usual": "encrypt"}}}),
    ("networkPolicy.clients", {"ingress": {"enabled": True}}),
    ("networkPolicy.clients", {"router": {"service": {"type": "LoadBalancer"}}}),
    ("networkPolicy.prometheus", {"metrics": {"serviceMonitor": {"enabled": True}}}),
    ("gateway.httpHostnames", {"gateway": {"enabled": True, "parentRefs": [{"name": "g"}], "grpcHostnames": ["a.b"]}}),
    ("gateway.grpcHostnames", {"gateway": {"grpcHostnames": ["a.b"], "httpHostnames": ["a.b"]}}),
    ("router.service.appProtocol", {"tls": {"enabled": True, "existingSecret": "a", "internalSecret": "b"},
                                    "router": {"service": {"appProtocol": "kubernetes.io/h2c"}}}),
    ("router.files", {"router": {"files": [{"name": "a", "path": "/etc/shoal/files/a"},
                                           {"name": "b", "path": "/etc/shoal/files/a"}]}}),
    ("config.worker.max_batch_tokens", {"config": {"worker": {"max_batch_size": 600}}}),
    ("config.worker.kv_tokens", {"config": {"worker": {"kv_tokens": 8}}}),
    ("config.worker.preferred_step_sizes", {"config": {"worker": {"preferred_step_sizes": [8, 4]}}}),
    ("config.worker.int8_activations", {"config": {"worker": {"int8_activations": True}}}),
    ("config.worker.golden", {"config": {"worker": {"golden": "/srv/golden.safetensors"}}}),
    ("config.router.session_ttl_seconds", {"config": {"router": {"max_session_ttl_seconds": 60}}}),
    ("config.autoscale.most", {"config": {"autoscale": {"least": 9}}}),
    ("expertParallel.groups", {"config": {"autoscale": {"enabled": True, "least": 2}}}),
    ("worker.topology.mode", {"config": {"autoscale": {"enabled": True}}, "worker": {"topology": {"mode": "require"}}}),
    ("config.limits.tenants_file", {"config": {"limits": {"tenants_file": "/etc/tenants.toml"}}}),
    ("config.access.issuer", {"auth": {"required": True},
                              "config": {"access": {"jwks": "https://i.d/k", "audience": "a"}}}),
    ("auth.required", {"config": {"access": {"jwks": "/etc/shoal/files/k/jwks", "issuer": "i", "audience": "a"}},
                       "router": {"files": [{"name": "k", "path": "/etc/shoal/files/k"}]}}),
    ("networkPolicy.routerEgress", {"config": {"safeguards": {"moderation_url": "https://m.example"}}}),
    ("redis.existingSecret", {"redis": {"mode": "external", "external": {"address": "redis:6379"}}}),
    ("redis.external.address", {"redis": {"mode": "external", "existingSecret": "redis"}}),
    ("model.objectStore.uri", {"model": {"source": "objectStore"}}),
    ("gateway.parentRefs", {"gateway": {"enabled": True}}),
    ("router.service.httpPort", {"router": {"service": {"httpPort": 50051}}}),
    ("router.autoscaling.maxReplicas",
     {"router": {"replicas": 9, "autoscaling": {"enabled": True, "maxReplicas": 8}}}),
    ("worker.metricsPort", {"worker": {"metricsPort": 20003, "ranksPerPod": 4}, "expertParallel": {"size": 4}}),
    ("tls.existingSecret", {"tls": {"enabled": True}}),
    ("tls.certManager.issuerName", {"tls": {"enabled": True, "certManager": {"enabled": True}}}),
    ("tls.clientCertificates", {"tls": {"clientCertificates": True}}),
    ("auth.existingSecret", {"auth": {"existingSecret": "keys"}}),
    ("router.env", {"router": {"env": [{"name": "A", "value": "1"}, {"name": "A", "value": "2"}]}}),
    ("serviceAccount.name", {"serviceAccount": {"create": False}}),
    ("router.resources.requests.memory", {"router": {"resources": {"requests": {"memory": "3Gi"}}}}),
    ("worker.resources.requests.cpu", {"worker": {"resources": {"limits": {"cpu": "3900m"}}}}),
]  # fmt: skip


def nested(key: str, value: Any) -> dict[str, Any]:
    """One value by its dotted key."""
    for part in reversed(key.split(".")):
        value = {part: value}
    made: dict[str, Any] = value
    return made


@pytest.mark.parametrize(("key", "value"), BAD)
def test_a_bad_value_is_refused_by_its_key(key: str, value: Any) -> None:
    """Out of range, of a wrong type, or unknown: the schema names the key."""
    with pytest.raises(RefusedError) as caught:
        render(nested(key, value))
    assert key.rpartition(".")[2] in str(caught.value)


@pytest.mark.parametrize(("key", "values"), CONTRADICTING)
def test_values_that_contradict_each_other_are_refused_by_key(key: str, values: dict[str, Any]) -> None:
    """What only goes wrong together is refused by a check that says what and where."""
    with pytest.raises(RefusedError) as caught:
        render(values)
    assert key in str(caught.value)


@pytest.mark.parametrize(("key", "values"), CONTRADICTING[:3])
def test_the_oldest_helm_refuses_them_too(key: str, values: dict[str, Any]) -> None:
    """Helm 3.10 says the same."""
    with pytest.raises(RefusedError) as caught:
        render_oldest(values, "1.30.0")
    assert key in str(caught.value)


def test_a_name_that_begins_with_a_digit_is_refused() -> None:
    """No Service may have it."""
    with pytest.raises(RefusedError, match="fullnameOverride"):
        render(release="1shoal")
