"""Secrets stay where they are: planted ones are looked for in whatever a router tells."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import redis

from shoal.cluster.embedded_redis import EmbeddedRedis
from shoal.proto.v1 import inference_pb2 as api
from shoal.router.audit.config import AuditConfig
from shoal.router.config import RouterConfig
from shoal.router.errors import StartError
from shoal.router.fleet.scripted_worker import saying
from tests.router.access.showing import Ring
from tests.router.conftest import StartCluster
from tests.router.http.asking import ask
from tests.router.talking import events_of, failed


async def test_credentials_are_in_nothing_that_a_router_tells(
    start_cluster: StartCluster,
    tmp_path: Path,
    redis_url: str,
    capsys: pytest.CaptureFixture[str],
    logged: Callable[[], str],
) -> None:
    """Not in logs, errors, metrics, the audit trail or Redis: neither keys nor tokens, good or bad."""
    ring = Ring(tmp_path)
    trail = tmp_path / "trail"
    cluster = await start_cluster(
        saying([1]), access=ring.config(), audit=AuditConfig(directory=str(trail)), http_port=0, redis_url=redis_url
    )
    stub: Any = cluster.front.inference
    shown = [ring.shown["admin"], ring.shown["revoked"], ring.provider.token("admin"), ring.provider.token("king")]
    told = []
    for credential in shown:
        metadata = (("authorization", f"Bearer {credential}"),)
        call = stub.Generate(api.GenerateRequest(text="x"), metadata=metadata)
        if credential in (shown[0], shown[2]):
            told.append(str(await events_of(call)))
        else:
            told.append(str((await failed(call))[1]))
        answer = await ask(cluster.front.listening.http, "/metrics", None, authorization=f"Bearer {credential}")
        told += [answer.text, str(answer.headers)]
    await cluster.front.router.stop(0)
    client = redis.Redis.from_url(redis_url)
    told += [str(client.dump(key)) for key in client.scan_iter()]
    client.close()
    told += [path.read_text() for path in trail.iterdir()]
    output = capsys.readouterr()
    told += [logged(), output.out, output.err]

    for credential in shown:
        secret = credential[17:] if credential.startswith("shk_") else credential.rpartition(".")[2]
        assert secret not in "\n".join(told)
    assert "request_ended" in logged()


def test_a_wrong_setting_does_not_show_a_password() -> None:
    """A URL that cannot be used is told by its setting alone."""
    with pytest.raises(StartError, match=r"router\.redis_url") as caught:
        RouterConfig("m", redis_url="mysql://user:canary@host")
    assert "canary" not in str(caught.value)
    assert "canary" not in repr(caught.value)


def test_no_secret_is_among_a_process_s_arguments(redis_server: EmbeddedRedis) -> None:
    """Everybody on a machine reads those: our own Redis has its password in a file."""
    password = urlsplit(redis_server.url).password or ""
    assert len(password) > 20
    seen = [_arguments(path) for path in Path("/proc").glob("[0-9]*/cmdline")]

    assert any(str(redis_server.directory) in line for line in seen)
    assert not [line for line in seen if password in line]


def _arguments(path: Path) -> str:
    try:
        return path.read_bytes().decode(errors="replace")
    except OSError:  # it ended meanwhile
        return ""
