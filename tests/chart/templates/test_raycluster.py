"""templates/raycluster.yaml."""

from __future__ import annotations

import re
import subprocess
from typing import Any

from tests.chart.pod_security import violations
from tests.chart.rendering import CHART, pod_templates, render, the


def ray(**values: object) -> dict[str, Any]:
    """The RayCluster's specification."""
    spec: dict[str, Any] = the(render(values), "RayCluster")["spec"]
    return spec


def worker_pod(**values: object) -> dict[str, Any]:
    """The first worker group's pod."""
    spec: dict[str, Any] = ray(**values)["workerGroupSpecs"][0]["template"]["spec"]
    return spec


def test_a_group_of_ranks_is_a_worker_group() -> None:
    """`size / ranksPerPod` pods each, and Ray is told of as many GPUs as the pod has."""
    spec = ray(expertParallel={"size": 8, "groups": 3}, worker={"ranksPerPod": 4, "threads": 2})
    assert ["g0", "g1", "g2"] == [group["groupName"] for group in spec["workerGroupSpecs"]]
    assert {2} == {group["replicas"] for group in spec["workerGroupSpecs"]}
    start = spec["workerGroupSpecs"][0]["rayStartParams"]
    assert ("8", "4") == (start["num-cpus"], start["num-gpus"])


def test_the_gpu_s_resource_name_can_be_chosen() -> None:
    """Requests and limits name it alike, and a CPU worker has none."""
    [container] = worker_pod(worker={"gpuResource": "amd.com/gpu"})["containers"]
    assert (1, 1) == tuple(container["resources"][kind]["amd.com/gpu"] for kind in ("requests", "limits"))
    [container] = worker_pod(worker={"device": "cpu"})["containers"]
    assert {"cpu", "memory"} == set(container["resources"]["limits"])


def test_the_pods_of_a_group_keep_together() -> None:
    """In the domain that was named, as firmly as was said."""
    term = {"topologyKey": "nvidia.com/gpu.clique", "labelSelector": {"matchLabels": {
        "app.kubernetes.io/name": "shoal", "app.kubernetes.io/instance": "fish",
        "app.kubernetes.io/component": "worker", "shoal/group": "g0"}}}  # fmt: skip
    firm = worker_pod(worker={"topology": {"mode": "require", "key": "nvidia.com/gpu.clique"}})["affinity"]
    assert [term] == firm["podAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    loose = worker_pod(worker={"topology": {"mode": "prefer", "key": "nvidia.com/gpu.clique"}})["affinity"]
    assert term == loose["podAffinity"]["preferredDuringSchedulingIgnoredDuringExecution"][0]["podAffinityTerm"]
    assert "affinity" not in worker_pod(worker={"topology": {"mode": "none"}})


def test_the_checkpoint_is_read_only() -> None:
    """In the head and in workers."""
    pods = [ray()["headGroupSpec"]["template"]["spec"], worker_pod()]
    mounts = [m for pod in pods for m in pod["containers"][0]["volumeMounts"] if m["name"] == "models"]
    assert [True, True] == [mount["readOnly"] for mount in mounts]


def test_an_object_store_is_copied_before_the_worker_starts() -> None:
    """All of it to workers; the head only reads the description."""
    values = {"model": {"source": "objectStore", "objectStore": {"uri": "s3://b/m", "endpoint": "https://s3.example"}}}
    [copier] = worker_pod(**values)["initContainers"]
    assert ["s3", "sync", "--no-progress", "--endpoint-url=https://s3.example", "--exclude=original/*",
            "--exclude=metal/*", "s3://b/m", "/models/gpt-oss-20b"] == copier["args"]  # fmt: skip
    [head] = ray(**values)["headGroupSpec"]["template"]["spec"]["initContainers"]
    order = [word for word in head["args"] if word.startswith(("--include", "--exclude"))]  # the last that fits decides
    assert ["--exclude=*", "--include=*.json", "--exclude=original/*", "--exclude=metal/*"] == order


def test_ray_keeps_its_state_in_redis() -> None:
    """With the password from the Secret; unless told not to."""
    options = ray()["gcsFaultToleranceOptions"]
    assert "fish-shoal-redis:6379" == options["redisAddress"]
    assert {"name": "fish-shoal-redis", "key": "password"} == options["redisPassword"]["valueFrom"]["secretKeyRef"]
    assert "gcsFaultToleranceOptions" not in ray(head={"faultTolerance": False})


def test_two_releases_of_one_name_can_share_a_redis() -> None:
    """Ray keeps what it knows under a name, always in the first database."""
    specs = [the(render(namespace=space), "RayCluster")["spec"] for space in ("sea", "lake")]
    names = [spec["gcsFaultToleranceOptions"]["externalStorageNamespace"] for spec in specs]
    assert ["sea-fish-shoal", "lake-fish-shoal"] == names


def test_what_workers_and_the_controller_say_is_in_the_pods_logs() -> None:
    """Ray would keep it in files that go with the pod."""
    for pod in (ray()["headGroupSpec"]["template"]["spec"], worker_pod()):
        told = {v["name"]: v.get("value") for v in pod["containers"][0]["env"]}
        assert "1" == told["RAY_LOG_TO_STDERR"]


def test_ray_kills_nobody_for_want_of_memory() -> None:
    """It counts what is mapped of a checkpoint, and the ranks would be what it finds."""
    told = {v["name"]: v.get("value") for v in worker_pod()["containers"][0]["env"]}
    assert "0" == told["RAY_memory_monitor_refresh_ms"]


def test_the_start_hook_never_gives_up() -> None:
    """Nobody looks at its exit status."""
    [hook] = [word for word in ray()["headGroupSpec"]["template"]["spec"]["containers"][0]["lifecycle"]["postStart"]
              ["exec"]["command"] if "controller" in word]  # fmt: skip
    assert "--keep-trying" in hook


def test_no_controller_is_started_where_kuberay_clears_redis() -> None:
    """It does so in a pod made of the head's template, hooks included, with too little memory for a second program."""
    [head] = ray()["headGroupSpec"]["template"]["spec"]["containers"]
    [kind] = [v for v in head["env"] if v["name"] == "SHOAL_NODE_TYPE"]
    assert "metadata.labels['ray.io/node-type']" == kind["valueFrom"]["fieldRef"]["fieldPath"]
    *shell, line = head["lifecycle"]["postStart"]["exec"]["command"]
    told = [
        subprocess.run([*shell, line.partition(" >")[0].replace("shoal ", "echo started ")], check=True, text=True,
                       capture_output=True, env={"SHOAL_NODE_TYPE": kind}).stdout
        for kind in ("head", "redis-cleanup")
    ]  # fmt: skip
    assert [True, False] == ["started" in words for words in told]


def test_ray_believes_the_ca_of_an_external_redis() -> None:
    """Ours is named in the URL, which only its owner knows; Ray's is a variable."""
    external = {"address": "rediss://redis.example:6380", "caSecret": "ca"}
    values = {"redis": {"mode": "external", "existingSecret": "r", "external": external}}
    [head] = ray(**values)["headGroupSpec"]["template"]["spec"]["containers"]
    told = {v["name"]: v.get("value") for v in head["env"]}
    [mount] = [m for m in head["volumeMounts"] if m["name"] == "redis-ca"]
    assert f"{mount['mountPath']}/ca.crt" == told["RAY_REDIS_CA_CERT"]
    assert "RAY_REDIS_CA_CERT" not in {
        v["name"] for v in ray()["headGroupSpec"]["template"]["spec"]["containers"][0]["env"]
    }


GROWING = {"config": {"autoscale": {"enabled": True, "most": 3}}, "expertParallel": {"size": 4},
           "worker": {"ranksPerPod": 2, "idleSeconds": 77}}  # fmt: skip


def test_pods_come_and_go_with_the_groups_that_the_controller_wants() -> None:
    """Ray's autoscaler finds room for all groups that may come, and gives back what is idle."""
    spec = ray(**GROWING)
    assert (True, 77) == (spec["enableInTreeAutoscaling"], spec["autoscalerOptions"]["idleTimeoutSeconds"])
    assert [(2, 0, 6)] == [(g["replicas"], g["minReplicas"], g["maxReplicas"]) for g in spec["workerGroupSpecs"]]
    assert not ray()["enableInTreeAutoscaling"]
    assert "autoscalerOptions" not in ray()


def test_only_the_autoscaler_has_a_token_of_the_kubernetes_api() -> None:
    """Not the container that reads models and runs the controller, and nobody without autoscaling."""
    spec = ray(**GROWING)
    head = spec["headGroupSpec"]["template"]["spec"]
    [volume] = [v for v in head["volumes"] if "projected" in v]
    assert {volume["name"]} <= {m["name"] for m in spec["autoscalerOptions"]["volumeMounts"]}
    assert volume["name"] not in {m["name"] for c in head["containers"] for m in c["volumeMounts"]}
    assert not head["automountServiceAccountToken"]
    assert not [v for v in ray()["headGroupSpec"]["template"]["spec"]["volumes"] if "projected" in v]


def test_the_autoscaler_is_restricted_too() -> None:
    """KubeRay makes its container of the options; all checks of pods see it."""
    templates = dict(pod_templates(the(render(GROWING), "RayCluster")))
    head = templates["/spec/headGroupSpec/template"]
    assert ["ray-head", "autoscaler"] == [container["name"] for container in head["spec"]["containers"]]
    assert [] == list(violations(head))


def test_ray_is_closed() -> None:
    """Token authentication, and no dashboard."""
    assert "token" == ray()["authOptions"]["mode"]
    assert "false" == ray()["headGroupSpec"]["rayStartParams"]["include-dashboard"]


def test_liveness_asks_the_pod_s_own_ray_only() -> None:
    """Neither Redis nor a peer can get a pod killed."""
    for pod in (ray()["headGroupSpec"]["template"]["spec"], worker_pod()):
        assert {"grpc"} <= set(pod["containers"][0]["livenessProbe"])


def test_a_worker_is_ready_when_its_ranks_are() -> None:
    """All of them."""
    [container] = worker_pod(worker={"ranksPerPod": 2}, expertParallel={"size": 2})["containers"]
    assert ["shoal", "health", "worker", "--ranks", "2"] == container["readinessProbe"]["exec"]["command"]


def test_workers_kept_prepared_have_pods_too() -> None:
    """Without a place for them a group would never be complete, and its start fail."""
    wanted = {"expertParallel": {"size": 4}, "worker": {"ranksPerPod": 2}, "config": {"cluster": {"spares": 2}}}
    assert [3] == [group["replicas"] for group in ray(**wanted)["workerGroupSpecs"]]


def test_ray_is_the_user_of_an_external_redis_that_is_said() -> None:
    """A server with an ACL may have closed its default user."""
    external = {"address": "redis.example:6380", "username": "shoal"}
    values = {"redis": {"mode": "external", "existingSecret": "r", "external": external}}
    assert {"value": "shoal"} == ray(**values)["gcsFaultToleranceOptions"]["redisUsername"]
    assert "redisUsername" not in ray()["gcsFaultToleranceOptions"]


def test_kuberay_is_told_the_ray_that_is_in_the_image() -> None:
    """It decides by it what the cluster understands."""
    lock = (CHART.parents[1] / "requirements/worker.lock").read_text()
    assert [ray()["rayVersion"]] == re.findall(r"^ray==(\S+)", lock, re.MULTILINE)


def test_the_controller_has_a_place_for_its_audit_trail() -> None:
    """In the head's pod, as routers have one; workers write none."""
    audit = {"enabled": True, "volume": "claim", "claimName": "trails", "keySecret": "trail"}
    head = ray(audit=audit)["headGroupSpec"]["template"]["spec"]
    mounts = {m["mountPath"]: m["name"] for m in head["containers"][0]["volumeMounts"]}
    volumes = {v["name"]: v for v in head["volumes"]}
    assert "audit" == mounts["/var/lib/shoal/audit"]
    assert ({"claimName": "trails"}, "trail") == (
        volumes["audit"]["persistentVolumeClaim"], volumes[mounts["/etc/shoal/audit"]]["secret"]["secretName"],
    )  # fmt: skip
    assert not {"audit", "audit-keys"} & {v["name"] for v in worker_pod(audit=audit)["volumes"]}
    assert "audit" not in {v["name"] for v in ray()["headGroupSpec"]["template"]["spec"]["volumes"]}
