"""The composed configuration."""

from __future__ import annotations

import os
import tomllib
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from shoal.cluster import config
from shoal.cluster.config import ClusterConfig, as_environment, load
from shoal.cluster.errors import ConfigError
from shoal.router.config import PARTS

EXAMPLE = Path(__file__).parents[2] / "deploy" / "config" / "shoal.toml"


def loaded(*assignments: str) -> config.Settings:
    """Settings of these assignments alone."""
    return load(environment={}, assignments=assignments)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("ep_size", "0"), ("ep_size", "257"), ("groups", "0"), ("start_timeout", "0"), ("stop_grace", "-1"),
        ("namespace", ""), ("state_dir", ""), ("ray_address", "ray://there:10001"), ("redis_url", "there:6379"),
        ("log_level", "loud"), ("log_format", "xml"),
    ],
)  # fmt: skip
def test_a_cluster_value_out_of_range_names_its_key(key: str, value: str) -> None:
    """Every refused [cluster] value says which key it was and where it was set."""
    with pytest.raises(ConfigError, match=rf"^cluster\.{key} must .*\(from --set cluster\.{key}\)$"):
        loaded(f"cluster.{key}={value}").cluster()


def test_a_refused_redis_url_is_not_shown() -> None:
    """A URL may hold a password, so the message does not repeat it."""
    with pytest.raises(ConfigError) as caught:
        loaded("cluster.redis_url=http://:hunter2@there").cluster()
    assert "hunter2" not in str(caught.value)


def test_errors_of_the_other_folders_gain_their_source() -> None:
    """The worker's and the router's own checks come out as ConfigError with the source."""
    with pytest.raises(ConfigError, match=r"^worker\.threads must .* \(from --set worker\.threads\)$"):
        loaded("worker.threads=0").worker("dir")
    with pytest.raises(ConfigError, match=r"^router\.port must .* \(from --set router\.port\)$"):
        loaded("router.port=70000").router(model_dir="dir")


@pytest.mark.parametrize("key", ["model", "worker_id", "group", "host", "port"])
def test_what_the_cluster_decides_cannot_be_set(key: str) -> None:
    """A worker's name, group and address are the controller's to give."""
    with pytest.raises(ConfigError, match=rf"^worker\.{key} cannot be set: "):
        loaded(f"worker.{key}=1")


def test_shoal_config_names_the_file(tmp_path: Path) -> None:
    """SHOAL_CONFIG is the file when no --config is given."""
    path = tmp_path / "a.toml"
    path.write_text("[cluster]\nep_size = 4\n")
    assert load(environment={"SHOAL_CONFIG": str(path)}).cluster().ep_size == 4


def test_the_example_file_is_the_defaults() -> None:
    """deploy/config/shoal.toml lists every setting with its default, so it is documentation that stays true."""
    text = EXAMPLE.read_text()
    listed = tomllib.loads("\n".join(line.removeprefix("# ") if " = " in line else line for line in text.splitlines()))
    settings = loaded()
    made: dict[str, Any] = {
        "cluster": settings.cluster(),
        "autoscale": settings.autoscale(),
        "worker": settings.worker("m"),
        "router": settings.router(model_dir="m"),
        **{part: settings.part(part) for part in PARTS},
    }
    local = {"state_dir", "model_dir", "router_id"}  # differ from machine to machine
    for section, instance in made.items():
        for field in fields(instance):
            if (section, field.name) in config.DECIDED or field.name in local:
                continue
            value = getattr(instance, field.name)
            shown = listed[section].get(field.name)
            assert value == (tuple(shown) if isinstance(shown, list) else shown), f"{section}.{field.name}"


def test_the_example_file_loads() -> None:
    """The example is accepted as it is."""
    assert ClusterConfig(state_dir="s") == load(EXAMPLE, environment={}, flags={"cluster.state_dir": "s"}).cluster()


def test_a_router_configuration_survives_the_environment() -> None:
    """What `serve` hands to its router is what the router builds, secrets and lists included."""
    given = loaded("router.redis_url=redis://:p@h:1", "router.workers=a:1,b:2").router(model_dir="/m")
    assert given == load(environment=as_environment("router", given)).router()


def test_the_state_directory_follows_xdg(monkeypatch: pytest.MonkeyPatch) -> None:
    """State goes to $XDG_STATE_HOME/shoal."""
    monkeypatch.setitem(os.environ, "XDG_STATE_HOME", "/somewhere")
    assert ClusterConfig().state_dir == "/somewhere/shoal"
