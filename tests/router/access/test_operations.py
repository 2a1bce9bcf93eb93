"""Operators change the cluster through a router: by their role and tenant, recorded, and nobody else."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from shoal.cluster.commands.scale import scale
from shoal.cluster.config import load
from shoal.cluster.errors import CallError
from shoal.proto.v1 import admin_pb2 as pb
from shoal.proto.v1.admin_pb2_grpc import AdminServiceStub
from shoal.router.access.config import AccessConfig
from shoal.router.audit.config import AuditConfig
from shoal.router.fleet.scripted_worker import saying
from tests.router.access.showing import make_key, write_keys
from tests.router.conftest import Cluster, StartCluster
from tests.router.controllers import ScriptedController, controller

METHODS: dict[str, Any] = {
    "GetCluster": pb.GetClusterRequest(), "Scale": pb.ScaleRequest(ep_size=2), "Rebalance": pb.RebalanceRequest(),
    "Drain": pb.DrainRequest(worker_id="g0-0"), "Inject": pb.InjectRequest(worker_id="g0-0"),
}  # fmt: skip


@pytest.fixture
def shown(tmp_path: Path) -> dict[str, str]:
    """Secrets of keys: two of the tenant that operates the cluster, one of an admin of another one."""
    made = {
        "operator": make_key("ops", "operator"),
        "user": make_key("ops", "user"),
        "other": make_key("acme", "admin"),
    }
    write_keys(tmp_path / "keys.json", *(key for key, _ in made.values()))
    return {name: secret for name, (_, secret) in made.items()}


@pytest.fixture
async def cluster(start_cluster: StartCluster, shown: dict[str, str], tmp_path: Path, redis_url: str) -> Cluster:
    """A router that asks for credentials and keeps a trail; `ops` operates the cluster."""
    access = AccessConfig(required=True, keys_file=str(tmp_path / "keys.json"), operators=("ops",))
    audit = AuditConfig(directory=str(tmp_path / "audit"))
    return await start_cluster(saying([1]), access=access, audit=audit, redis_url=redis_url, router_id="r1")


@pytest.fixture
async def scripted(redis_url: str) -> AsyncIterator[ScriptedController]:
    """The controller."""
    async with controller(redis_url) as made:
        yield made


async def call(cluster: Cluster, method: str, secret: str, request: Any = None) -> Any:
    """The answer, or the error."""
    stub = AdminServiceStub(cluster.front.channel)
    metadata = (("authorization", f"Bearer {secret}"),)
    try:
        return await getattr(stub, method)(request or METHODS[method], metadata=metadata, timeout=10)
    except grpc.aio.AioRpcError as error:
        return error


async def test_an_operator_of_the_tenant_may(
    cluster: Cluster, scripted: ScriptedController, shown: dict[str, str]
) -> None:
    """The controller answers, and knows for whom a router asks. Nothing is broken on purpose this way."""
    for method in ("GetCluster", "Scale", "Drain", "Rebalance"):
        assert not isinstance(await call(cluster, method, shown["operator"]), Exception), method
    asked, behind = zip(*scripted.asked, strict=True)
    assert ("ScaleRequest", "DrainRequest", "RebalanceRequest") == asked
    assert all(name.startswith("ops ") for name in behind)
    refused = await call(cluster, "Inject", shown["operator"])
    assert refused.code() is grpc.StatusCode.PERMISSION_DENIED
    assert len(scripted.asked) == 3


async def test_nobody_else_may(cluster: Cluster, scripted: ScriptedController, shown: dict[str, str]) -> None:
    """Neither a user of that tenant nor an admin of another one; not even look."""
    for who in ("user", "other"):
        for method in METHODS:
            refused = await call(cluster, method, shown[who])
            assert refused.code() is grpc.StatusCode.PERMISSION_DENIED, f"{who} calls {method}"
    assert scripted.asked == []


async def test_nobody_may_unless_the_setting_says_so(
    start_cluster: StartCluster, scripted: ScriptedController, redis_url: str
) -> None:
    """A router that asks nobody for anything is no way to the controller either."""
    cluster = await start_cluster(saying([1]), redis_url=redis_url)
    assert (await call(cluster, "Scale", "none")).code() is grpc.StatusCode.PERMISSION_DENIED
    assert scripted.asked == []


async def test_a_refusal_of_the_controller_is_told_as_it_is(
    cluster: Cluster, scripted: ScriptedController, shown: dict[str, str]
) -> None:
    """What is wrong with the request, in the controller's words."""
    refused = await call(cluster, "Scale", shown["operator"], pb.ScaleRequest(ep_size=9))
    assert (grpc.StatusCode.INVALID_ARGUMENT, "ep_size must be 1 to 8") == (refused.code(), refused.details())
    refused = await call(cluster, "Drain", shown["operator"], pb.DrainRequest(worker_id="g9-9"))
    assert refused.code() is grpc.StatusCode.NOT_FOUND


async def test_a_controller_that_is_away_is_waited_for_by_the_caller(cluster: Cluster, shown: dict[str, str]) -> None:
    """With a hint; serving goes on."""
    refused = await call(cluster, "Scale", shown["operator"])
    assert refused.code() is grpc.StatusCode.UNAVAILABLE
    trailing = {key: str(value) for key, value in refused.trailing_metadata()}
    assert ("controller_away", "1000") == (trailing["shoal-reason"], trailing["retry-after-ms"])


async def test_it_is_recorded_before_and_after(
    cluster: Cluster, scripted: ScriptedController, shown: dict[str, str], tmp_path: Path
) -> None:
    """Who, what in full, and how it ended."""
    await call(cluster, "Scale", shown["operator"], pb.ScaleRequest(ep_size=2, groups=3))
    await cluster.front.router.stop(0)
    (file,) = (tmp_path / "audit").glob("r1*.jsonl")
    records = [json.loads(line) for line in file.read_text().splitlines()]
    mine = [record for record in records if "AdminService/Scale" in json.dumps(record)]
    assert len(mine) == 2
    assert all("ep_size: 2 groups: 3" in json.dumps(record) for record in mine)
    assert all('"ops"' in json.dumps(record) for record in mine)


async def test_the_command_line_goes_through_a_router(
    cluster: Cluster, scripted: ScriptedController, shown: dict[str, str], monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """With the key of its environment."""
    address, settings = cluster.front.listening.address, load(environment={})
    monkeypatch.setenv("SHOAL_API_KEY", shown["operator"])
    await asyncio.to_thread(scale, settings, 2, 3, 0.0, address)
    assert capsys.readouterr().out == "wanted: 3 x 2 workers\n"
    monkeypatch.setenv("SHOAL_API_KEY", shown["other"])
    with pytest.raises(CallError, match=r"PERMISSION_DENIED.*access\.operators says who"):
        await asyncio.to_thread(scale, settings, 2, 3, 0.0, address)
