"""templates/secret.yaml."""

from __future__ import annotations

import json
from base64 import b64decode

from tests.chart.rendering import kinds, render, the


def test_the_bundled_redis_gets_a_password_and_its_url() -> None:
    """Long, random, and the same in both keys."""
    data = {key: b64decode(value).decode() for key, value in the(render(), "Secret")["data"].items()}
    assert len(data["password"]) >= 32
    assert f"redis://:{data['password']}@fish-shoal-redis:6379/0" == data["url"]
    assert data["password"] != b64decode(the(render(), "Secret")["data"]["password"]).decode()


def test_a_secret_of_yours_is_only_named() -> None:
    """And then none is made."""
    assert "Secret" not in kinds(render({"redis": {"existingSecret": "mine"}}))


def test_it_outlives_the_release() -> None:
    """The volume with the data does too, and needs it."""
    assert "keep" == the(render(), "Secret")["metadata"]["annotations"]["helm.sh/resource-policy"]


def test_the_password_is_in_nothing_but_the_secret() -> None:
    """Pods read it from a file: not their arguments, environment, settings or annotations."""
    manifests = render({"audit": {"enabled": True, "volume": "emptyDir"}})
    secret = the(manifests, "Secret")
    password = b64decode(secret["data"]["password"]).decode()
    told = json.dumps([manifest for manifest in manifests if manifest is not secret])
    for shown in (password, *secret["data"].values()):
        assert shown not in told
