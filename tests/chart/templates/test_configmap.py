"""templates/configmap.yaml."""

from __future__ import annotations

import tempfile
import tomllib
from pathlib import Path

import pytest
import yaml

from shoal.cluster import config
from shoal.workers.config import WorkerConfig
from tests.chart.rendering import CHART, Manifest, render, the


def settings(**values: object) -> config.Settings:
    """What the product reads from the rendered file."""
    return read(render(values))


def read(manifests: list[Manifest]) -> config.Settings:
    """The same of what is rendered already."""
    text = the(manifests, "ConfigMap", "-config")["data"]["shoal.toml"]
    with tempfile.NamedTemporaryFile("w", suffix=".toml") as file:
        file.write(text)
        file.flush()
        return config.load(Path(file.name), {})


def taken(manifests: list[Manifest]) -> None:
    """Every section is built by the product's own dataclasses, which refuse what they do not know. Raises."""
    found = read(manifests)
    found.cluster()
    found.autoscale()
    found.worker("m")
    found.router(redis_url="redis://r:1")


def test_the_product_takes_the_rendered_settings() -> None:
    """With their values."""
    read = settings(worker={"device": "cpu", "threads": 3}, model={"name": "small"})
    assert "/models/small" == read.cluster().model
    assert WorkerConfig(model="/models/small", device="cpu", threads=3, first_port=20000, metrics_host="0.0.0.0",
                        metrics_port=21000) == read.worker("/models/small")  # fmt: skip
    assert ("0.0.0.0", 50051, 8000) == (read.router().host, read.router().port, read.router().http_port)


@pytest.mark.parametrize("tokens", [65536, 2**40])
def test_further_keys_of_a_section_are_passed_on(tokens: int) -> None:
    """With their type: a large integer stays one."""
    read = settings(config={"worker": {"kv_tokens": tokens, "prefix_cache": False}, "router": {"max_running": 7}})
    assert (tokens, False) == (read.worker("m").kv_tokens, read.worker("m").prefix_cache)
    assert 7 == read.router().max_running


def test_the_desired_size_stands_in_a_file_of_its_own() -> None:
    """The controller reads it as TOML."""
    text = the(render({"expertParallel": {"size": 4, "groups": 2}}), "ConfigMap", "-desired")["data"]["desired.toml"]
    assert {"ep_size": 4, "groups": 2} == tomllib.loads(text)


def test_each_dashboard_is_a_config_map_that_grafana_finds() -> None:
    """One per file, only when asked for, with the label of Grafana's sidecar."""
    assert not [m for m in render() if "-dashboard-" in m["metadata"]["name"]]
    made = [m for m in render({"metrics": {"dashboards": {"enabled": True, "labels": {"grafana": "yes"}}}})
            if "-dashboard-" in m["metadata"]["name"]]  # fmt: skip
    assert all("yes" == m["metadata"]["labels"]["grafana"] for m in made)


def test_every_section_of_the_settings_can_be_set() -> None:
    """What the product reads from its file, the chart can write: [tls] follows from values of its own."""
    sections = set(config.SECTIONS) - {"tls"}
    assert sections == set(yaml.safe_load((CHART / "values.yaml").read_text())["config"])
    text = the(render(), "ConfigMap", "-config")["data"]["shoal.toml"]
    assert set(config.SECTIONS) == set(tomllib.loads(text))
