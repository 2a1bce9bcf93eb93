"""templates/deployment.yaml."""

from __future__ import annotations

from typing import Any

from tests.chart.rendering import render, the


def deployment(**values: object) -> dict[str, Any]:
    """The routers' specification."""
    spec: dict[str, Any] = the(render(values), "Deployment")["spec"]
    return spec


def container(**values: object) -> dict[str, Any]:
    """The router's container."""
    [made] = deployment(**values)["template"]["spec"]["containers"]
    result: dict[str, Any] = made
    return result


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
    assert "/etc/shoal/redis/url" == variables["SHOAL_ROUTER__REDIS_URL_FILE"]
    assert not [v for v in container()["env"] if "secretKeyRef" in str(v)]


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
