"""templates/deployment.yaml."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

from tests.chart.rendering import Manifest, pod_templates, render, the


def deployment(**values: object) -> dict[str, Any]:
    """The routers' specification."""
    spec: dict[str, Any] = the(render(values), "Deployment")["spec"]
    return spec


def container(**values: object) -> dict[str, Any]:
    """The router's container."""
    [made] = deployment(**values)["template"]["spec"]["containers"]
    result: dict[str, Any] = made
    return result


def settings_of(manifests: list[Manifest]) -> dict[str, Any]:
    """shoal.toml."""
    return tomllib.loads(the(manifests, "ConfigMap", "-config")["data"]["shoal.toml"])


def test_a_new_router_serves_before_an_old_one_goes() -> None:
    """A rollout never has fewer routers than asked for."""
    assert {"maxSurge": 1, "maxUnavailable": 0} == deployment()["strategy"]["rollingUpdate"]


def test_an_autoscaler_alone_says_how_many_there_are() -> None:
    """With it the Deployment has no number of its own."""
    assert 5 == deployment(router={"replicas": 5})["replicas"]
    assert "replicas" not in deployment(router={"autoscaling": {"enabled": True}})


def test_the_grace_period_holds_lame_duck_and_drain() -> None:
    """And what comes after them."""
    pod = deployment(router={"lameDuckSeconds": 20, "drainSeconds": 100})["template"]["spec"]
    assert 135 == pod["terminationGracePeriodSeconds"]
    assert ["sleep", "20"] == pod["containers"][0]["lifecycle"]["preStop"]["exec"]["command"]


def test_probes_mean_what_they_say() -> None:
    """Ready: it can generate. Alive: it answers, whatever else is down."""
    made = container()
    assert "/readyz" == made["readinessProbe"]["httpGet"]["path"]
    assert "/healthz" == made["livenessProbe"]["httpGet"]["path"]


def test_the_redis_url_is_a_file_not_a_variable() -> None:
    """A secret in the environment is seen by everything that lists processes."""
    variables = {v["name"]: v.get("value") for v in container()["env"]}
    assert "/etc/shoal/redis/url" == variables["SHOAL_CLUSTER__REDIS_URL_FILE"]
    assert not [v for v in container()["env"] if "secretKeyRef" in str(v)]


def test_it_waits_for_redis_longer_than_a_first_start_takes_and_less_than_its_probe() -> None:
    """Redis and routers start side by side: a router that gave up early would be restarted, each time later."""
    wait = settings_of(render())["router"]["redis_wait_seconds"]
    probe = container()["startupProbe"]
    assert 120 <= wait < probe["periodSeconds"] * probe["failureThreshold"]


def test_a_rollout_waits_for_a_checkpoint_to_be_read() -> None:
    """Ten minutes, the usual deadline, are over before a large one is."""
    assert 1200 + 1800 == deployment(worker={"startSeconds": 1200})["progressDeadlineSeconds"]


def test_the_audit_trail_has_a_place_that_is_bounded_or_a_claim() -> None:
    """The only writable directory besides /tmp, and the settings name it; its keys are files of a Secret."""
    audit = {"enabled": True, "volume": "emptyDir", "sizeLimit": "3Gi", "keySecret": "trail"}
    manifests = render({"audit": audit})
    said = settings_of(manifests)["audit"]
    mounts = {m["mountPath"]: m for m in container(audit=audit)["volumeMounts"]}
    assert mounts[said["directory"]]["name"] == "audit"
    assert not mounts[said["directory"]].get("readOnly")
    assert {"/etc/shoal/audit"} == {str(Path(said[key]).parent) for key in ("key_file", "encryption_key_file")}
    volumes = {v["name"]: v for v in deployment(audit=audit)["template"]["spec"]["volumes"]}
    assert {"sizeLimit": "3Gi"} == volumes["audit"]["emptyDir"]
    claimed = {"enabled": True, "volume": "claim", "claimName": "trails"}
    volumes = {v["name"]: v for v in deployment(audit=claimed)["template"]["spec"]["volumes"]}
    assert {"claimName": "trails"} == volumes["audit"]["persistentVolumeClaim"]
    assert "directory" not in settings_of(render())["audit"]


def test_secrets_and_config_maps_of_yours_are_files() -> None:
    """Whole directories, so that a change arrives in the running pod."""
    files = [{"name": "tenants", "kind": "ConfigMap", "path": "/etc/shoal/files/tenants"},
             {"name": "moderation", "path": "/etc/shoal/files/moderation"}]  # fmt: skip
    mounts = {m["mountPath"]: m for m in container(router={"files": files})["volumeMounts"]}
    assert all(mounts[file["path"]]["readOnly"] and "subPath" not in mounts[file["path"]] for file in files)
    volumes = {v["name"]: v for v in deployment(router={"files": files})["template"]["spec"]["volumes"]}
    assert "tenants" == volumes["files-0"]["configMap"]["name"]
    assert "moderation" == volumes["files-1"]["secret"]["secretName"]


def test_traces_go_where_is_said() -> None:
    """Of routers and of workers; nowhere unless asked for."""
    name = "OTEL_EXPORTER_OTLP_ENDPOINT"
    for template in (t for m in render({"tracing": {"endpoint": "http://c:4317"}}) for _, t in pod_templates(m)):
        told = {v["name"]: v.get("value") for c in template["spec"]["containers"] for v in c.get("env", [])}
        role = template["metadata"]["labels"]["app.kubernetes.io/component"]
        assert ("http://c:4317" if role in ("router", "head", "worker") else None) == told.get(name)
    assert name not in {v["name"] for v in container()["env"]}


def test_changed_settings_roll_the_routers() -> None:
    """The pod template carries a hash of them; another size of the workers changes nothing."""

    def annotation(**values: object) -> str:
        made: str = deployment(**values)["template"]["metadata"]["annotations"]["checksum/config"]
        return made

    assert annotation() == annotation(expertParallel={"size": 8})
    assert annotation() != annotation(config={"router": {"max_running": 3}})


def test_further_environment_and_annotations_are_passed_on() -> None:
    """As given."""
    made = deployment(router={"env": [{"name": "A", "value": "b"}], "podAnnotations": {"x/y": "z"}})["template"]
    assert {"name": "A", "value": "b"} in made["spec"]["containers"][0]["env"]
    assert "z" == made["metadata"]["annotations"]["x/y"]


def test_a_digest_wins_over_a_tag() -> None:
    """And without either the chart's own version is meant."""
    digest = "sha256:" + "a" * 64
    assert f"r@{digest}" == container(image={"router": {"repository": "r", "tag": "t", "digest": digest}})["image"]
    assert "r:t" == container(image={"router": {"repository": "r", "tag": "t"}})["image"]
    assert "shoal-router:0.1.0" == container()["image"]
