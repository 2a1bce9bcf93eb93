"""A trace goes from the client through the router to the worker, over gRPC and over HTTP."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest

from shoal.router.fleet.scripted_worker import saying
from tests.router.conftest import StartCluster
from tests.router.talking import events_of, user
from tests.wire.collector import Collector, collecting

TRACE, SPAN = "a" * 32, "b" * 16
PARENT = f"00-{TRACE}-{SPAN}-01"


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> Iterator[Collector]:
    """Where routers that are started send their spans."""
    with collecting() as made:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://{made.address}")
        yield made


async def test_a_trace_over_grpc(start_cluster: StartCluster, collector: Collector) -> None:
    """The router's span is below the client's, and the worker is told to go on below the router's."""
    cluster = await start_cluster(saying([65, 66]))
    await events_of(cluster.front.inference.Chat(user("Hi"), metadata=(("traceparent", PARENT),)))
    await cluster.front.router.stop(0)
    told = collector.of(TRACE)["shoal-router"]
    assert ("chat", SPAN) == (told.name, told.parent)
    assert [f"00-{TRACE}-{told.span}-01"] == [submit.traceparent for submit in cluster.worker.submits]


async def test_a_trace_over_http(start_cluster: StartCluster, collector: Collector) -> None:
    """The same by the header."""
    cluster = await start_cluster(saying([65, 66]), http_port=0)
    asked = {"model": "model", "messages": [{"role": "user", "content": "Hi"}]}
    async with httpx.AsyncClient(base_url=f"http://{cluster.front.listening.http}") as client:
        asked["model"] = (await client.get("/v1/models")).json()["data"][0]["id"]
        answer = await client.post("/v1/chat/completions", json=asked, headers={"traceparent": PARENT})
    assert 200 == answer.status_code, answer.text
    await cluster.front.router.stop(0)
    told = collector.of(TRACE)["shoal-router"]
    assert SPAN == told.parent
    assert [f"00-{TRACE}-{told.span}-01"] == [submit.traceparent for submit in cluster.worker.submits]


async def test_without_a_collector_the_client_s_own_trace_is_carried_on(start_cluster: StartCluster) -> None:
    """The router makes no spans, and does not break the chain of those around it."""
    cluster = await start_cluster(saying([65, 66]))
    await events_of(cluster.front.inference.Chat(user("Hi"), metadata=(("traceparent", PARENT),)))
    assert [PARENT] == [submit.traceparent for submit in cluster.worker.submits]
