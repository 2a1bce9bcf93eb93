"""Which values contradict each other, told without Helm; of settings the product's own dataclasses are asked."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from shoal.cluster.config import SECTIONS
from tests.chart.rules import amount

Get = Callable[[str], Any]
"""A value, or its default, by its dotted key."""


def contradictions(values: dict[str, Any], defaults: dict[str, Any]) -> list[str]:
    """The keys that Helm must name when it refuses these values; none: they must render."""

    get = _reader(values, defaults)
    found: list[str] = []
    size, per = get("expertParallel.size"), get("worker.ranksPerPod")
    if size % per:
        found.append("expertParallel.size")
    if values.get("config", {}).get("cluster", {}).get("spares", 0) % per:
        found.append("config.cluster.spares")
    if get("worker.gpuResource") in values.get("worker", {}).get("extendedResources", {}):
        found.append("worker.extendedResources")
    if get("redis.mode") == "external" and not (get("redis.existingSecret") and get("redis.external.address")):
        found.append("redis.mode")
    if get("model.source") == "objectStore" and not get("model.objectStore.uri"):
        found.append("model.source")
    if get("gateway.enabled") and not get("gateway.parentRefs"):
        found.append("gateway.enabled")
    if get("router.service.grpcPort") == get("router.service.httpPort"):
        found.append("router.service.httpPort")
    if get("router.autoscaling.enabled") and get("router.autoscaling.maxReplicas") < get("router.replicas"):
        found.append("router.autoscaling.maxReplicas")
    if abs(get("worker.grpcPort") - get("worker.metricsPort")) < per:
        found.append("worker.metricsPort")
    tls, manager = get("tls.enabled"), get("tls.certManager.enabled")
    if tls and not manager and not (get("tls.existingSecret") and get("tls.internalSecret")):
        found.append("tls.enabled")
    if manager and not (tls and get("tls.certManager.issuerName")):
        found.append("tls.certManager.enabled")
    if get("tls.clientCertificates") and not tls:
        found.append("tls.clientCertificates")
    if get("auth.existingSecret") and not get("auth.required"):
        found.append("auth.existingSecret")
    if not get("serviceAccount.create") and not get("serviceAccount.name"):
        found.append("serviceAccount.create")
    for part in ("worker", "head", "router"):
        names = [variable["name"] for variable in values.get(part, {}).get("env", [])]
        if len(set(names)) != len(names):
            found.append(f"{part}.env")
    for part in ("worker", "head", "router", "redis.bundled"):
        resources = get(f"{part}.resources")
        if isinstance(resources, dict) and resources and _upside_down(resources):
            found.append(f"{part}.resources")
    return [*found, *_audit(get), *_outside(get), *_settings(get, values.get("config", {}))]


def _upside_down(resources: dict[str, Any]) -> bool:
    limits = resources["limits"]
    return any(k not in limits or amount(v) > amount(limits[k]) for k, v in resources["requests"].items())


def _reader(values: dict[str, Any], defaults: dict[str, Any]) -> Get:
    def get(path: str) -> Any:
        at, default = values, defaults
        for part in path.split("."):
            at, default = at.get(part, {}) if isinstance(at, dict) else {}, default[part]
        return default if at == {} and not isinstance(default, dict) else at

    return get


def _audit(get: Get) -> Iterator[str]:
    on, volume = get("audit.enabled"), get("audit.volume")
    if on and not volume:
        yield "audit.volume"
    if volume and not on:
        yield "audit.enabled"
    if (volume == "claim") != bool(get("audit.claimName")):
        yield "audit.claimName"
    if get("audit.keySecret") and not on:
        yield "audit.keySecret"


def _outside(get: Get) -> Iterator[str]:
    """Who comes from outside, and by which names."""
    grpc, http = get("gateway.grpcHostnames"), get("gateway.httpHostnames")
    if set(grpc) & set(http) or (get("gateway.enabled") and not (grpc and http)):
        yield "gateway.grpcHostnames"
    if get("tls.enabled") and get("router.service.appProtocol") == "kubernetes.io/h2c":
        yield "router.service.appProtocol"
    if get("networkPolicy.enabled"):
        outside = get("ingress.enabled") or get("gateway.enabled") or get("router.service.type") != "ClusterIP"
        if outside and not get("networkPolicy.clients"):
            yield "networkPolicy.clients"
        if get("metrics.serviceMonitor.enabled") and not get("networkPolicy.prometheus"):
            yield "networkPolicy.prometheus"


def _settings(get: Get, config: dict[str, Any]) -> Iterator[str]:
    """What the product refuses, and what no pod has or reaches."""
    needed = {"worker": {"model": "m"}, "router": {"model_dir": "m"}}
    if get("audit.keySecret"):
        needed["audit"] = {"encryption_key_file": "k"}
    for section, given in config.items():
        try:
            SECTIONS[section](**needed.get(section, {}), **{k: _hashable(v) for k, v in given.items()})
        except Exception as error:  # of any section's own kind
            key = str(error).partition(" ")[0]
            # The chart names the value that is its own, where it decides the setting.
            yield {"audit.encryption_key_file": "audit.keySecret"}.get(key, f"config.{key}")
    autoscale = config.get("autoscale", {})
    if autoscale.get("enabled"):
        if not autoscale.get("least", 1) <= get("expertParallel.groups") <= autoscale.get("most", 4):
            yield "expertParallel.groups"
        if get("worker.topology.mode") == "require":
            yield "worker.topology.mode"
    worker, access = config.get("worker", {}), config.get("access", {})
    limits, safeguards = config.get("limits", {}), config.get("safeguards", {})
    if worker.get("int8_activations") and get("worker.device") == "cuda":
        yield "config.worker.int8_activations"
    if (golden := worker.get("golden")) and not golden.startswith("/models/"):
        yield "config.worker.golden"
    paths = [file["path"] for file in get("router.files")]
    if len(set(paths)) != len(paths):
        yield "router.files"
    jwks = access.get("jwks", "")
    if jwks and not get("auth.required"):
        yield "config.access.jwks"
    mounted = {
        "config.access.jwks": "" if jwks.startswith("https:") else jwks,
        "config.access.jwks_ca": access.get("jwks_ca"),
        "config.limits.tenants_file": limits.get("tenants_file"),
        "config.safeguards.moderation_key_file": safeguards.get("moderation_key_file"),
    }
    yield from (key for key, path in mounted.items() if path and not any(path.startswith(f"{p}/") for p in paths))
    asked = jwks.startswith("https:") or safeguards.get("moderation_url")
    if asked and get("networkPolicy.enabled") and not get("networkPolicy.routerEgress"):
        yield "networkPolicy.routerEgress"


def _hashable(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
