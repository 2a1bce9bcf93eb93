"""What no schema says: that the names, ports, labels and sizes in a set of manifests fit each other.

`problems(manifests)` yields one line each. The API server would refuse some of these; most it would take, and nothing
would work.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any

from tests.chart.rendering import Manifest, pod_templates

DNS = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$")
PORT_NAME = re.compile(r"(?=.*[a-z])[a-z0-9]([a-z0-9-]*[a-z0-9])?$")
UNITS = {"m": 1e-3, "": 1, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12,
         "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}  # fmt: skip


def problems(manifests: list[Manifest], given: Iterable[tuple[str, str]] = ()) -> Iterator[str]:
    """Everything that does not fit. `given` are (kind, name) that exist outside, such as a claim of the user's."""
    there = {(m["kind"], m["metadata"]["name"]) for m in manifests} | set(given)
    there.add(("ConfigMap", "kube-root-ca.crt"))  # Kubernetes puts one into every namespace
    there |= {("Secret", m["spec"]["secretName"]) for m in manifests if m["kind"] == "Certificate"}
    templates = [(f"{m['kind']}/{m['metadata']['name']}{where}", t) for m in manifests for where, t in pod_templates(m)]
    claims = {f"StatefulSet/{m['metadata']['name']}/spec/template": m["spec"].get("volumeClaimTemplates", ())
              for m in manifests if m["kind"] == "StatefulSet"}  # fmt: skip
    for manifest in manifests:
        yield from _names(manifest)
    for where, template in templates:
        own = {c["metadata"]["name"] for c in claims.get(where, ())}
        for problem in _pod(template, there, own):
            yield f"{where}: {problem}"
    labelled = [t.get("metadata", {}).get("labels", {}) for _, t in templates] + [_ray_labels(m) for m in manifests]
    for manifest in manifests:
        check = CHECKS.get(manifest["kind"])
        for problem in check(manifest, manifests, templates, labelled) if check else ():
            yield f"{manifest['kind']}/{manifest['metadata']['name']}: {problem}"


def _names(manifest: Manifest) -> Iterator[str]:
    name = manifest["metadata"]["name"]
    if not DNS.match(name):
        yield f"{manifest['kind']}/{name}: not a DNS label of at most 63 characters"
    if manifest["kind"] == "RayCluster" and len(name) > 50:
        yield f"RayCluster/{name}: longer than what KubeRay can make names of"


def _pod(template: dict[str, Any], there: set[tuple[str, str]], claimed: set[str]) -> Iterator[str]:
    spec = template["spec"]
    volumes = {volume["name"] for volume in spec.get("volumes", [])} | claimed
    containers = [*spec.get("initContainers", []), *spec["containers"]]
    if "serviceAccountName" in spec and ("ServiceAccount", spec["serviceAccountName"]) not in there:
        yield f"no service account {spec['serviceAccountName']}"
    for kind, name in _references(spec):
        if (kind, name) not in there:
            yield f"no {kind} {name}"
    ports: set[Any] = set()
    for container in containers:
        yield from _container(container, volumes)
        for port in container.get("ports", []):
            if port["containerPort"] in ports:
                yield f"port {port['containerPort']} twice"
            ports |= {port["containerPort"], port.get("name")}
    unused = volumes - {m["name"] for c in containers for m in c.get("volumeMounts", [])}
    if unused:
        yield f"volumes that nobody mounts: {', '.join(sorted(unused))}"
    if len({c["name"] for c in containers}) != len(containers):
        yield "two containers of one name"
    yield from _grace(spec)


def _container(container: dict[str, Any], volumes: set[str]) -> Iterator[str]:
    name = container["name"]
    if not DNS.match(name):
        yield f"container name {name!r}"
    known = {p.get("name") for p in container.get("ports", [])} | {
        p["containerPort"] for p in container.get("ports", [])
    }
    for port in container.get("ports", []):
        if not 1 <= port["containerPort"] <= 65535 or len(port["name"]) > 15 or not PORT_NAME.match(port["name"]):
            yield f"{name}: port {port}"
    for mount in container.get("volumeMounts", []):
        if mount["name"] not in volumes:
            yield f"{name}: mounts a volume {mount['name']!r} that does not exist"
    paths = [mount["mountPath"] for mount in container.get("volumeMounts", [])]
    if len(set(paths)) != len(paths):
        yield f"{name}: two volumes in one place"
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        for way in ("httpGet", "tcpSocket", "grpc"):
            port = container.get(probe, {}).get(way, {}).get("port")
            # A gRPC probe takes a number; Ray's own ports are not declared by whoever writes the pod.
            if port is not None and port not in known and not (way == "grpc" and port in (6379, 6380)):
                yield f"{name}: {probe} asks port {port!r}, which it does not have"
    names = [variable["name"] for variable in container.get("env", [])]
    if len(set(names)) != len(names):
        yield f"{name}: a variable twice"
    resources = container.get("resources", {})
    for kind, wanted in resources.get("requests", {}).items():
        if kind not in resources.get("limits", {}):
            yield f"{name}: no limit of {kind}"
        elif amount(wanted) > amount(resources["limits"][kind]):
            yield f"{name}: requests more {kind} ({wanted}) than its limit ({resources['limits'][kind]})"


def named_outside(values: dict[str, Any]) -> set[tuple[str, str]]:
    """What these values of the chart say exists outside of it."""
    model, redis = values.get("model", {}), values.get("redis", {})
    tls, audit = values.get("tls", {}), values.get("audit", {})
    files = values.get("router", {}).get("files", [])
    return {
        ("PersistentVolumeClaim", audit.get("claimName")),
        ("Secret", audit.get("keySecret")),
        *((file.get("kind", "Secret"), file["name"]) for file in files),
        ("Secret", values.get("test", {}).get("apiKeySecret")),
        ("Secret", tls.get("existingSecret")),
        ("Secret", tls.get("internalSecret")),
        ("Secret", values.get("auth", {}).get("existingSecret")),
        ("Secret", redis.get("external", {}).get("caSecret")),
        ("PersistentVolumeClaim", model.get("pvc", {}).get("claimName", "shoal-models")),
        ("Secret", model.get("objectStore", {}).get("existingSecret")),
        ("Secret", redis.get("existingSecret")),
        ("ServiceAccount", values.get("serviceAccount", {}).get("name")),
    }


def amount(quantity: str | int) -> float:
    """A quantity as a number.

    >>> amount("500m"), amount("2Ki"), amount(3)
    (0.5, 2048.0, 3.0)
    """
    match = re.fullmatch(r"([0-9.]+)([A-Za-z]*)", str(quantity))
    assert match is not None, quantity
    return float(match[1]) * UNITS[match[2]]


def _grace(spec: dict[str, Any]) -> Iterator[str]:
    """A pod must live longer than what it does before it ends."""
    for container in spec["containers"]:
        command = container.get("lifecycle", {}).get("preStop", {}).get("exec", {}).get("command", [])
        numbers = [int(word) for word in command if re.fullmatch("[0-9]+", word)]
        if numbers and spec.get("terminationGracePeriodSeconds", 30) <= max(numbers):
            yield f"terminationGracePeriodSeconds is not longer than the preStop hook's {max(numbers)} s"


def _references(spec: Any) -> Iterator[tuple[str, str]]:
    kinds = {"configMap": ("ConfigMap", "name"), "secret": ("Secret", "secretName"),
             "persistentVolumeClaim": ("PersistentVolumeClaim", "claimName"), "secretRef": ("Secret", "name"),
             "secretKeyRef": ("Secret", "name"), "configMapKeyRef": ("ConfigMap", "name")}  # fmt: skip
    if isinstance(spec, dict):
        for key, value in spec.items():
            if key in kinds and isinstance(value, dict):
                yield kinds[key][0], value[kinds[key][1]]
            yield from _references(value)
    elif isinstance(spec, list):
        for item in spec:
            yield from _references(item)


def _matches(selector: dict[str, Any], labels: dict[str, str]) -> bool:
    for expression in selector.get("matchExpressions", []):
        assert expression["operator"] == "In", expression
        if labels.get(expression["key"]) not in expression["values"]:
            return False
    return all(labels.get(key) == value for key, value in selector.get("matchLabels", {}).items())


def _ray_labels(manifest: Manifest) -> dict[str, str]:
    """What KubeRay puts on the pods that it makes."""
    return {"ray.io/cluster": manifest["metadata"]["name"]} if manifest["kind"] == "RayCluster" else {}


def _selects_itself(manifest: Manifest, *_: Any) -> Iterator[str]:
    if not _matches(manifest["spec"]["selector"], manifest["spec"]["template"]["metadata"]["labels"]):
        yield "its selector does not match its own pods"


def _service(manifest: Manifest, _: Any, templates: Any, __: Any) -> Iterator[str]:
    selector = {"matchLabels": manifest["spec"]["selector"]}
    selected = [t for _, t in templates if _matches(selector, t.get("metadata", {}).get("labels", {}))]
    if not selected:
        yield "selects no pod"
    for template in selected:
        ports = {p.get("name") for c in template["spec"]["containers"] for p in c.get("ports", [])}
        for port in manifest["spec"]["ports"]:
            if port["targetPort"] not in ports:
                yield f"its port {port['name']} goes to {port['targetPort']!r}, which the pod does not have"


def _budget(manifest: Manifest, manifests: list[Manifest], _: Any, labelled: list[dict[str, str]]) -> Iterator[str]:
    if not any(_matches(manifest["spec"]["selector"], labels) for labels in labelled):
        yield "selects no pod"
    rays = [m for m in manifests if m["kind"] == "RayCluster"]
    of_ray = any(_matches(manifest["spec"]["selector"], t["metadata"].get("labels", {}))
                 for ray in rays for _, t in pod_templates(ray))  # fmt: skip
    if of_ray and not isinstance(manifest["spec"].get("minAvailable"), int):
        yield "pods of a RayCluster have no scale: only an integer minAvailable is understood"


def _network_policy(manifest: Manifest, _: Any, templates: Any, labelled: list[dict[str, str]]) -> Iterator[str]:
    spec = manifest["spec"]
    if not any(_matches(spec["podSelector"], labels) for labels in labelled):
        yield "selects no pod"
    selected = [t for _, t in templates if _matches(spec["podSelector"], t.get("metadata", {}).get("labels", {}))]
    names = {p.get("name") for t in selected for c in t["spec"]["containers"] for p in c.get("ports", [])}
    for rule in spec.get("ingress", []):
        for port in rule.get("ports", []):
            if isinstance(port["port"], str) and port["port"] not in names:
                yield f"lets in to port {port['port']!r}, which its pods do not have"
    for direction, key in (("ingress", "from"), ("egress", "to")):
        for rule in spec.get(direction, []):
            for peer in rule.get(key, []):
                ours = "namespaceSelector" not in peer and "app.kubernetes.io/component" in peer.get(
                    "podSelector", {}
                ).get("matchLabels", {})
                if ours and not any(_matches(peer["podSelector"], labels) for labels in labelled):
                    yield f"{direction}: no pod is {peer['podSelector']['matchLabels']}"


def _ingress(manifest: Manifest, manifests: list[Manifest], *_: Any) -> Iterator[str]:
    for rule in manifest["spec"]["rules"]:
        for path in rule["http"]["paths"]:
            service = path["backend"]["service"]
            yield from _has_port(manifests, service["name"], service["port"]["name"])


def _route(manifest: Manifest, manifests: list[Manifest], *_: Any) -> Iterator[str]:
    for rule in manifest["spec"]["rules"]:
        for backend in rule["backendRefs"]:
            yield from _has_port(manifests, backend["name"], backend["port"])


def _has_port(manifests: list[Manifest], name: str, port: str | int) -> Iterator[str]:
    services = [m for m in manifests if m["kind"] == "Service" and m["metadata"]["name"] == name]
    if not any(port in (p["name"], p["port"]) for s in services for p in s["spec"]["ports"]):
        yield f"no service {name} with a port {port}"


def _autoscaler(manifest: Manifest, manifests: list[Manifest], *_: Any) -> Iterator[str]:
    target = manifest["spec"]["scaleTargetRef"]
    found = [m for m in manifests if (m["kind"], m["metadata"]["name"]) == (target["kind"], target["name"])]
    if not found:
        yield f"no {target['kind']} {target['name']}"
    if any("replicas" in m["spec"] for m in found):
        yield f"{target['name']} also says how many replicas it wants"
    if manifest["spec"]["minReplicas"] > manifest["spec"]["maxReplicas"]:
        yield "its least is more than its most"


def _service_monitor(manifest: Manifest, manifests: list[Manifest], *_: Any) -> Iterator[str]:
    every = [m for m in manifests if m["kind"] == "Service"]
    services = [m for m in every if _matches(manifest["spec"]["selector"], m["metadata"]["labels"])]
    if len(services) != 1:
        yield f"selects {len(services)} services"
    for service in services:
        names = {port["name"] for port in service["spec"]["ports"]}
        yield from (f"no port {e['port']}" for e in manifest["spec"]["endpoints"] if e["port"] not in names)


def _pod_monitor(manifest: Manifest, _: Any, templates: Any, __: Any) -> Iterator[str]:
    selected = [t for _, t in templates
                if _matches(manifest["spec"]["selector"], t.get("metadata", {}).get("labels", {}))]  # fmt: skip
    if not selected:
        yield "selects no pod"
    for template in selected:
        names = {p.get("name") for c in template["spec"]["containers"] for p in c.get("ports", [])}
        yield from (f"no port {e['port']}" for e in manifest["spec"]["podMetricsEndpoints"] if e["port"] not in names)


CHECKS = {
    "Deployment": _selects_itself,
    "GRPCRoute": _route,
    "HTTPRoute": _route,
    "HorizontalPodAutoscaler": _autoscaler,
    "Ingress": _ingress,
    "NetworkPolicy": _network_policy,
    "PodDisruptionBudget": _budget,
    "PodMonitor": _pod_monitor,
    "Service": _service,
    "ServiceMonitor": _service_monitor,
    "StatefulSet": _selects_itself,
}
