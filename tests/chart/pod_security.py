"""The restricted Pod Security Standard, for any pod template: what a namespace that enforces it would refuse."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

VOLUMES = {"configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim", "projected", "secret"}


def violations(template: dict[str, Any]) -> Iterator[str]:
    """What is wrong with a pod, one line each."""
    spec = template["spec"]
    for key in ("hostNetwork", "hostPID", "hostIPC"):
        if spec.get(key):
            yield f"{key} is set"
    for volume in spec.get("volumes", []):
        if foreign := set(volume) - {"name"} - VOLUMES:
            yield f"volume {volume['name']} is a {', '.join(foreign)}"
    pod = spec.get("securityContext", {})
    if pod.get("sysctls"):
        yield "sysctls are set"
    for container in [*spec.get("initContainers", []), *spec["containers"]]:
        yield from _container(container, pod)


def _container(container: dict[str, Any], pod: dict[str, Any]) -> Iterator[str]:
    name, context = container["name"], container.get("securityContext", {})
    if context.get("privileged"):
        yield f"{name} is privileged"
    if context.get("allowPrivilegeEscalation") is not False:
        yield f"{name} allows privilege escalation"
    if context.get("capabilities", {}).get("drop") != ["ALL"]:
        yield f"{name} keeps capabilities"
    if set(context.get("capabilities", {}).get("add", [])) - {"NET_BIND_SERVICE"}:
        yield f"{name} adds capabilities"
    if not context.get("runAsNonRoot", pod.get("runAsNonRoot")):
        yield f"{name} may run as root"
    if context.get("runAsUser", pod.get("runAsUser")) == 0:
        yield f"{name} runs as root"
    if context.get("seccompProfile", pod.get("seccompProfile", {})).get("type") not in ("RuntimeDefault", "Localhost"):
        yield f"{name} has no seccomp profile"
    if any("hostPort" in port for port in container.get("ports", [])):
        yield f"{name} takes a port of its host"
    # Not part of the standard, and promised all the same.
    if context.get("readOnlyRootFilesystem") is not True:
        yield f"{name} may write to its root file system"
