"""`helm upgrade --set expertParallel.size=N` changes two numbers and restarts nothing."""

from __future__ import annotations

from typing import Any

from tests.chart.rendering import render


def leaves(node: Any, path: str = "") -> dict[str, Any]:
    """Every value by its path."""
    if isinstance(node, dict):
        return {k: v for key, value in node.items() for k, v in leaves(value, f"{path}/{key}").items()}
    if isinstance(node, list):
        return {k: v for index, value in enumerate(node) for k, v in leaves(value, f"{path}/{index}").items()}
    return {path: node}


def everything(size: int, groups: int = 1) -> dict[str, Any]:
    """Every value of the rendered chart, by kind, name and path."""
    values = {"expertParallel": {"size": size, "groups": groups}, "redis": {"existingSecret": "redis"}}
    made: dict[str, Any] = {}
    for manifest in render(values):
        made |= leaves(manifest, f"{manifest['kind']}/{manifest['metadata']['name']}")
    return made


def test_the_size_is_the_number_of_workers_and_what_the_controller_watches() -> None:
    """Rendered for 4 and for 8, nothing else differs: no pod template changes, so no pod restarts."""
    four, eight = everything(4), everything(8)
    assert set(four) == set(eight)
    changed = {key: (four[key], eight[key]) for key in four if four[key] != eight[key]}
    assert changed == {
        "RayCluster/fish-shoal/spec/workerGroupSpecs/0/replicas": (4, 8),
        "ConfigMap/fish-shoal-desired/data/desired.toml": ("ep_size = 4\ngroups = 1\n", "ep_size = 8\ngroups = 1\n"),
    }


def test_a_group_more_is_a_worker_group_more_and_the_same_number() -> None:
    """The groups that are there already stay as they are."""
    one, two = everything(4, 1), everything(4, 2)
    changed = {key for key in one if one[key] != two[key]}
    assert changed == {"ConfigMap/fish-shoal-desired/data/desired.toml"}
    assert {key.split("/")[4] for key in set(two) - set(one)} == {"1"}
