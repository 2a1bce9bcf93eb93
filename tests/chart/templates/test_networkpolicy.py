"""templates/networkpolicy.yaml."""

from __future__ import annotations

from typing import Any

from tests.chart.rendering import kinds, render, the


def policy(suffix: str, **values: object) -> dict[str, Any]:
    """One policy's specification."""
    spec: dict[str, Any] = the(render(values), "NetworkPolicy", suffix)["spec"]
    return spec


def test_everything_is_denied_first() -> None:
    """Both ways, for every pod of the release."""
    deny = policy("-deny")
    assert ["Ingress", "Egress"] == deny["policyTypes"]
    assert not {"ingress", "egress"} & set(deny)


def test_only_named_clients_reach_routers() -> None:
    """And whoever may scrape reaches the metrics alone."""
    team = {"namespaceSelector": {"matchLabels": {"team": "fish"}}}
    monitoring = {"namespaceSelector": {"matchLabels": {"name": "monitoring"}}}
    calls, scrapes = policy("-router", networkPolicy={"clients": [team], "prometheus": [monitoring]})["ingress"]
    assert team in calls["from"]
    assert {"podSelector": {}} not in calls["from"]
    assert ([monitoring], [{"port": "metrics"}]) == (scrapes["from"], scrapes["ports"])


def test_ports_of_others_are_numbers() -> None:
    """Names of ports on the way out are resolved by few network plugins."""
    ports = [p["port"] for m in render() if m["kind"] == "NetworkPolicy"
             for rule in m["spec"].get("egress", []) for p in rule.get("ports", [])]  # fmt: skip
    assert {int} == {type(port) for port in ports}


def test_names_are_asked_of_those_who_answer() -> None:
    """kube-dns and a node's own cache, or whom one says; nobody else on that port."""
    usual = policy("-router")["egress"][0]
    assert {53} == {port["port"] for port in usual["ports"]}
    assert {"ipBlock": {"cidr": "169.254.20.10/32"}} in usual["to"]
    own = [{"namespaceSelector": {"matchLabels": {"name": "openshift-dns"}}}]
    assert own == policy("-ray", networkPolicy={"dns": own})["egress"][0]["to"]


def test_the_way_to_an_object_store_and_a_collector_is_open_by_their_ports() -> None:
    """Said in their URLs, or usual; for routers and for Ray's pods."""
    store = {"source": "objectStore", "objectStore": {"uri": "s3://b/m", "endpoint": "http://minio.example:9000"}}
    tracing = {"endpoint": "http://collector.monitoring:4317"}
    for role in ("-router", "-ray"):
        open_ports = [
            r["ports"][0]["port"] for r in policy(role, model=store, tracing=tracing)["egress"] if "to" not in r
        ]
        assert [9000, 4317] == open_ports
    store["objectStore"] = {"uri": "s3://b/m"}
    assert {"ports": [{"port": 443}]} in policy("-ray", model=store)["egress"]
    assert not [r for r in policy("-ray")["egress"] if "to" not in r]


def test_routers_reach_exactly_the_ports_of_the_ranks() -> None:
    """Not Ray's."""
    egress = policy("-router", worker={"grpcPort": 30000, "ranksPerPod": 4}, expertParallel={"size": 4})["egress"]
    assert [{"port": 30000, "endPort": 30003}] == egress[-1]["ports"]


def test_redis_is_reached_by_routers_and_ray_alone() -> None:
    """By role and by Ray cluster."""
    [rule] = policy("-redis")["ingress"]
    labels = [peer["podSelector"]["matchLabels"] for peer in rule["from"]]
    assert ["router", None] == [label.get("app.kubernetes.io/component") for label in labels]
    assert {"ray.io/cluster": "fish-shoal"} == labels[1]


def test_an_external_redis_is_left_for_by_its_port() -> None:
    """Where it is only its owner knows."""
    redis = {"mode": "external", "existingSecret": "r", "external": {"address": "redis.example:6390"}}
    assert {"ports": [{"port": 6390}]} in policy("-router", redis=redis)["egress"]


def test_they_can_be_left_out() -> None:
    """For clusters that do it their own way."""
    assert "NetworkPolicy" not in kinds(render({"networkPolicy": {"enabled": False}}))


def test_the_exchange_between_ranks_is_reached_by_the_release_s_own_ray_alone() -> None:
    """It is not encrypted: besides Ray's pods only routers reach workers, at their stream, and scrapers at metrics."""
    peers = [{"podSelector": {"matchLabels": {"ray.io/cluster": "fish-shoal"}}}]
    assert [{"from": peers}] == policy("-ray")["ingress"]
    manifests = render({"worker": {"grpcPort": 30000, "metricsPort": 31000}})
    selecting = [m["spec"] for m in manifests if m["kind"] == "NetworkPolicy" and _selects(m["spec"], "worker")]
    rules = [rule for spec in selecting for rule in spec.get("ingress", [])]
    ports = [[port["port"] for port in rule.get("ports", [])] for rule in rules]
    assert sorted([[], [30000], [31000]]) == sorted(ports)


def _selects(spec: dict[str, Any], role: str) -> bool:
    """Whether pods of that role are meant."""
    selector, key = spec["podSelector"], "app.kubernetes.io/component"
    wanted = selector.get("matchLabels", {}).get(key, role)
    expressions = [e["values"] for e in selector.get("matchExpressions", []) if e["key"] == key]
    return bool(wanted == role and all(role in values for values in expressions))


def test_routers_reach_the_controller_where_somebody_operates_the_cluster_through_them() -> None:
    """At its one port, which the settings of all roles name; else there is no way."""
    operated: dict[str, Any] = {"config": {"access": {"operators": ["ops"]}}}
    way = [{"port": 8078}]
    assert way in [rule.get("ports") for rule in policy("-ray", **operated)["ingress"]]
    assert way in [rule.get("ports") for rule in policy("-router", **operated)["egress"]]
    for name, rules in (("-ray", "ingress"), ("-router", "egress")):
        assert way not in [rule.get("ports") for rule in policy(name)[rules]]
    assert "admin_port = 8078" in str([m for m in render(operated) if m["kind"] == "ConfigMap"])
