"""Settings of a router."""

from __future__ import annotations

from typing import Any

import pytest

from shoal.router.config import RouterConfig
from shoal.router.errors import StartError


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("model_dir", ""),
        ("port", 70000),
        ("port", -1),
        ("metrics_port", -2),
        ("http_port", -2),
        ("http_host", ""),
        ("http_max_body_bytes", 0),
        ("max_running", 0),
        ("max_waiting", -1),
        ("max_choices", 0),
        ("registry_poll", 0.0),
        ("max_request_seconds", 0.0),
        ("drain_seconds", -1.0),
        ("redis_url", "http://x"),
        ("workers", ("nowhere",)),
        ("workers", ("h:0",)),
        ("log_level", "loud"),
        ("session_ttl_seconds", 10**9),
        ("router_id", ""),
    ],
)
def test_a_wrong_value_is_named_by_its_key(key: str, value: Any) -> None:
    """An impossible setting is refused with its full name."""
    settings = {"model_dir": "m", key: value}
    with pytest.raises(StartError, match=rf"router\.{key} must be"):
        RouterConfig(**settings)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "model_dir is missing"),
        ({"model_dir": "m", "prot": 1}, r"router\.prot is not a setting; known are .*port"),
        ({"model_dir": 3}, "model_dir must be a string"),
        ({"model_dir": "m", "port": "1"}, "port must be an integer"),
        ({"model_dir": "m", "port": True}, "port must be an integer"),
        ({"model_dir": "m", "insecure": 1}, "insecure must be true or false"),
        ({"model_dir": "m", "drain_seconds": "1"}, "drain_seconds must be a number"),
        ({"model_dir": "m", "workers": "h:1"}, "workers must be a list of strings"),
    ],
)
def test_a_wrong_file_is_named_by_its_key(values: dict[str, Any], message: str) -> None:
    """Unknown, missing and mistyped keys are told apart."""
    with pytest.raises(StartError, match=message):
        RouterConfig.from_mapping(values)


def test_a_mapping_becomes_settings() -> None:
    """Lists become tuples, whole numbers serve as times."""
    made = RouterConfig.from_mapping({"model_dir": "m", "workers": ["h:1"], "drain_seconds": 3})

    assert made.workers == ("h:1",)
    assert made.drain_seconds == 3.0


def test_a_password_is_not_shown() -> None:
    """A wrong Redis URL is refused without printing it."""
    with pytest.raises(StartError) as caught:
        RouterConfig(model_dir="m", redis_url="rdis://:secret@h")

    assert "secret" not in str(caught.value)


def test_each_router_has_its_own_name() -> None:
    """Two routers made from the same settings can be told apart by workers."""
    assert RouterConfig(model_dir="m").router_id != RouterConfig(model_dir="m").router_id
