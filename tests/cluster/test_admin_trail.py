"""What operators change is recorded, and only who has the internal name is served."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
import redis.asyncio
from typer.testing import CliRunner

from shoal.cluster.admin import AdminServer
from shoal.cluster.admin_trail import LOOKING
from shoal.cluster.commands.audit import app
from shoal.proto.v1 import admin_pb2 as pb
from shoal.router.access.caller import Caller, serving
from shoal.router.audit.config import AuditConfig
from shoal.router.operations import Operations
from shoal.wire.credentials import open_channel
from shoal.wire.registry import CONTROLLER_KEY, Desired
from shoal.wire.tls import INTERNAL_NAME, TlsConfig, calling_credentials
from tests.certificates import Authority
from tests.router.talking import until

SERVICE = pb.DESCRIPTOR.services_by_name["AdminService"]


class Parts:
    """A controller with one worker, and a registry that takes whatever it is told."""

    def __init__(self) -> None:
        self.groups: dict[str, Any] = {}
        self.done: list[str] = []

    def drain(self, worker: str) -> bool:
        """Whether there is such a worker."""
        if worker == "g0-0":
            self.done.append(f"drain {worker}")
        return worker == "g0-0"

    async def scale(self, *asked: Any) -> None:
        """Taken."""
        self.done.append(f"scale {asked[:2]}")

    async def announce_controller(self, address: str) -> None:
        """Nobody listens."""

    async def desire(self, wanted: Desired) -> None:
        """Remembered."""


@pytest.fixture
async def start() -> AsyncIterator[Callable[..., Any]]:
    """Starts an admin API; gives its address and what it acts on."""
    servers: list[AdminServer] = []

    async def started(audit: AuditConfig, tls: TlsConfig | None = None) -> tuple[str, Parts]:
        parts: Any = Parts()
        server = AdminServer(parts, parts, parts, None, parts, Desired(2, 1), 0.0, tls or TlsConfig(), audit)
        servers.append(server)
        await server.start("127.0.0.1")
        return server.address, parts

    yield started
    for server in servers:
        server._announcing.cancel()
        assert server._server is not None
        await server._server.stop(0)


async def code_of(address: str, method: str, request: bytes, credentials: Any = None) -> tuple[grpc.StatusCode, str]:
    """How a call ends, and what it says."""
    async with open_channel(address, credentials=credentials, name=INTERNAL_NAME if credentials else "") as channel:
        call: Any = channel.unary_unary(f"/{SERVICE.full_name}/{method}")
        try:
            await call(request, timeout=5)
        except grpc.aio.AioRpcError as error:
            return error.code(), error.details() or ""
    return grpc.StatusCode.OK, ""


def records(folder: Path) -> list[dict[str, Any]]:
    """All that a controller wrote."""
    return [json.loads(line) for path in folder.glob("controller-*.jsonl") for line in path.read_text().splitlines()]


async def test_changes_are_recorded_before_they_are_made_and_as_they_ended(start: Any, tmp_path: Path) -> None:
    """With what was asked and by whom; the trail verifies. Looks are not recorded."""
    address, parts = await start(AuditConfig(directory=str(tmp_path)))
    await code_of(address, "GetCluster", b"")
    await code_of(address, "Scale", pb.ScaleRequest(ep_size=4).SerializeToString())
    await code_of(address, "Drain", pb.DrainRequest(worker_id="g0-0").SerializeToString())
    await code_of(address, "Drain", pb.DrainRequest(worker_id="gone").SerializeToString())
    await code_of(address, "Inject", pb.InjectRequest(worker_id="g0-0").SerializeToString())
    await until(lambda: len(records(tmp_path)) == 8)
    told = [(r["kind"], r["method"].partition("/")[2], r["about"], r.get("outcome")) for r in records(tmp_path)]

    assert told == [
        ("accepted", "Scale", "ep_size: 4", None),
        ("called", "Scale", "ep_size: 4", "OK"),
        ("accepted", "Drain", 'worker_id: "g0-0"', None),
        ("called", "Drain", 'worker_id: "g0-0"', "OK"),
        ("accepted", "Drain", 'worker_id: "gone"', None),
        ("called", "Drain", 'worker_id: "gone"', "NOT_FOUND"),
        ("accepted", "Inject", 'worker_id: "g0-0"', None),
        ("called", "Inject", 'worker_id: "g0-0"', "FAILED_PRECONDITION"),
    ]
    assert all(record["subject"].startswith("ipv4:127.0.0.1:") for record in records(tmp_path))
    assert parts.done == ["scale (4, 1)", "drain g0-0"]
    assert CliRunner().invoke(app, ["verify", str(tmp_path)]).exit_code == 0


@pytest.mark.parametrize("policy", ["refuse", "degrade"])
async def test_what_cannot_be_recorded_follows_the_policy(start: Any, tmp_path: Path, policy: str) -> None:
    """Not done and told so, or done; looking works all the same, and so does everything once the disk is back."""
    folder = tmp_path / "trail"
    folder.write_text("no folder")
    address, parts = await start(AuditConfig(directory=str(folder), on_failure=policy))
    request = pb.DrainRequest(worker_id="g0-0").SerializeToString()
    code, said = await code_of(address, "Drain", request)
    assert (await code_of(address, "GetCluster", b""))[0] is grpc.StatusCode.OK
    if policy == "refuse":
        assert code is grpc.StatusCode.UNAVAILABLE
        assert said.startswith("not done")
        assert parts.done == []
    else:
        assert (code, parts.done) == (grpc.StatusCode.OK, ["drain g0-0"])
    folder.unlink()

    assert (await code_of(address, "Drain", request))[0] is grpc.StatusCode.OK
    assert [record["kind"] for record in records(folder)] == ["accepted", "called"]


@pytest.mark.parametrize("method", [method.name for method in SERVICE.methods])
async def test_only_the_internal_name_is_served(start: Any, tmp_path: Path, method: str) -> None:
    """A certificate of the same CA for something else reaches no method; who tried to change something is recorded."""
    authority = Authority(tmp_path)
    ours, theirs = authority.issue("ours", INTERNAL_NAME), authority.issue("theirs", "acme")
    tls = TlsConfig(internal_ca=authority.file, internal_certificate=ours.certificate, internal_key=ours.key)
    address, parts = await start(AuditConfig(directory=str(tmp_path / "trail")), tls)
    shown = calling_credentials(authority.file, theirs.certificate, theirs.key)
    code, _ = await code_of(address, method, b"", shown)

    assert code is grpc.StatusCode.PERMISSION_DENIED
    assert parts.done == []
    expected = [] if method in LOOKING else [("acme", None), ("acme", "PERMISSION_DENIED")]
    await until(lambda: [(r["subject"], r.get("outcome")) for r in records(tmp_path / "trail")] == expected)


async def test_a_router_s_call_is_recorded_with_whom_it_is_for(start: Any, tmp_path: Path, redis_url: str) -> None:
    """It shows our own certificate, and says who asked it."""
    authority = Authority(tmp_path)
    ours = authority.issue("ours", INTERNAL_NAME)
    tls = TlsConfig(internal_ca=authority.file, internal_certificate=ours.certificate, internal_key=ours.key)
    address, parts = await start(AuditConfig(directory=str(tmp_path / "trail")), tls)
    client: Any = redis.asyncio.Redis.from_url(redis_url)
    await client.set(CONTROLLER_KEY, address)
    context: Any = None
    with serving(Caller("ops", "operator", "k1")):
        await Operations(client, tls, ("ops",)).Drain(pb.DrainRequest(worker_id="g0-0"), context)
    await client.aclose()

    assert parts.done == ["drain g0-0"]
    await until(lambda: len(records(tmp_path / "trail")) == 2)
    assert {f"{INTERNAL_NAME} for ops k1"} == {record["subject"] for record in records(tmp_path / "trail")}


async def test_two_controllers_do_not_share_a_file(start: Any, tmp_path: Path) -> None:
    """The second on a machine changes nothing until the first is gone."""
    first, _ = await start(AuditConfig(directory=str(tmp_path)))
    request = pb.DrainRequest(worker_id="g0-0").SerializeToString()
    assert (await code_of(first, "Drain", request))[0] is grpc.StatusCode.OK
    second, _ = await start(AuditConfig(directory=str(tmp_path)))
    assert "another process" in (await code_of(second, "Drain", request))[1]
