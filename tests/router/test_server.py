"""The router as a whole: health, reflection, metrics, start and end."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import urllib.request
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
import structlog
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from shoal.proto.v1 import inference_pb2 as api
from shoal.proto.v1 import worker_pb2 as pb
from shoal.proto.v1.inference_pb2_grpc import InferenceServiceStub
from shoal.router.config import RouterConfig
from shoal.router.errors import StartError
from shoal.router.fleet.scripted_worker import Action, Hang, Say, ScriptedWorker, doing, saying
from shoal.router.server import INFERENCE, SESSIONS, Listening, Router, main, run
from shoal.router.tokenizer import Tokenizer
from tests.router.conftest import Front, StartCluster, StartRouter
from tests.router.talking import events_of, failed, trailing, until, user

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


async def health_of(front: Front, service: str) -> int:
    """What the health service says."""
    stub: Any = health_pb2_grpc.HealthStub(front.channel)
    answer = await stub.Check(health_pb2.HealthCheckRequest(service=service))
    return int(answer.status)


async def health_is(front: Front, service: str, expected: int) -> None:
    """Wait until the health service says so."""
    for _ in range(100):
        if await health_of(front, service) == expected:
            return
        await asyncio.sleep(0.02)
    raise AssertionError(f"{service or 'the process'} never became {expected}")


async def page_of(listening: Listening) -> str:
    """/metrics."""

    def fetch() -> str:
        with urllib.request.urlopen(f"http://{listening.metrics}/metrics", timeout=5) as answer:
            return str(answer.read().decode())

    return await asyncio.to_thread(fetch)


async def test_health_tells_parts_apart(start_cluster: StartCluster, redis_url: str) -> None:
    """The process lives, can generate while a worker is there, can keep sessions while Redis is there."""
    cluster = await start_cluster(saying([1]), redis_url=redis_url)
    await health_is(cluster.front, "", SERVING)
    await health_is(cluster.front, INFERENCE, SERVING)
    await health_is(cluster.front, SESSIONS, SERVING)
    await cluster.worker.stop()

    await health_is(cluster.front, INFERENCE, NOT_SERVING)
    assert await health_of(cluster.front, "") == SERVING


async def test_without_redis_sessions_are_not_serving(start_cluster: StartCluster) -> None:
    """A router without Redis is healthy in everything but sessions."""
    cluster = await start_cluster(saying([1]))
    await health_is(cluster.front, INFERENCE, SERVING)
    await health_is(cluster.front, SESSIONS, NOT_SERVING)


async def test_reflection_lists_the_services(start_router: StartRouter) -> None:
    """A client without our proto files can find out what there is."""
    front = await start_router()
    channel: Any = front.channel  # the stub's types know only the blocking kind
    stub: Any = reflection_pb2_grpc.ServerReflectionStub(channel)
    asked = iter([reflection_pb2.ServerReflectionRequest(list_services="")])
    answers = [answer async for answer in stub.ServerReflectionInfo(asked)]

    assert {INFERENCE, SESSIONS} <= {service.name for service in answers[0].list_services_response.service}


async def test_metrics_count_what_happened(start_cluster: StartCluster) -> None:
    """Requests by method and status, tokens, times and rejections are on /metrics; no text is."""
    cluster = await start_cluster(saying([1, 2, 3]), metrics_port=0)
    await events_of(cluster.front.inference.Generate(api.GenerateRequest(text="secret")))
    await failed(cluster.front.inference.Generate(api.GenerateRequest()))
    page = await page_of(cluster.front.listening)

    for line in (
        'shoal_router_requests_total{code="OK",method="Generate"} 1.0',
        'shoal_router_requests_total{code="INVALID_ARGUMENT",method="Generate"} 1.0',
        'shoal_router_rejections_total{reason="invalid_field"} 1.0',
        "shoal_router_input_tokens_total 6.0",
        "shoal_router_output_tokens_total 3.0",
        "gen_ai_server_time_to_first_token_seconds_count 1.0",
        "gen_ai_server_time_per_output_token_seconds_count 2.0",
        "shoal_router_queue_seconds_count 2.0",
        "shoal_router_requests_in_flight 0.0",
        "shoal_router_workers_ready 1.0",
    ):
        assert line in page
    assert "secret" not in page


async def test_an_unexpected_error_is_internal_and_keeps_its_text(
    start_cluster: StartCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A mistake of ours is told as INTERNAL without details."""
    cluster = await start_cluster(saying([1]))

    async def broken() -> None:
        raise KeyError("secret")

    monkeypatch.setattr(cluster.front.router.pool, "wait_ready", broken)
    _, error = await failed(cluster.front.inference.Generate(api.GenerateRequest(text="x")))

    assert error.code() is grpc.StatusCode.INTERNAL
    assert "secret" not in (error.details() or "")
    assert trailing(error)["shoal-retryable"] == "false"


async def test_stopping_drains(start_cluster: StartCluster) -> None:
    """Who runs is served to the end, who waits and who comes is sent elsewhere."""
    going = asyncio.Event()

    async def script(submit: pb.Submit) -> AsyncIterator[Action]:
        yield Say((1,))
        await going.wait()
        yield Say((2,), pb.SEQUENCE_FINISH_LENGTH)

    cluster = await start_cluster(script, max_running=1)
    router = cluster.front.router
    running = asyncio.create_task(events_of(cluster.front.inference.Generate(api.GenerateRequest(text="x"))))
    await until(lambda: len(cluster.worker.submits) == 1)
    waiting = asyncio.create_task(failed(cluster.front.inference.Generate(api.GenerateRequest(text="x"))))
    await until(lambda: router.admission.waiting == 1)
    stopping = asyncio.create_task(router.stop(grace=5))
    _, sent_away = await waiting
    going.set()
    events = await running
    await stopping

    assert sent_away.code() is grpc.StatusCode.UNAVAILABLE
    assert trailing(sent_away)["shoal-reason"] == "stopping"
    assert events[-1].done.usage.output_tokens == 2


async def test_draining_has_an_end(start_cluster: StartCluster) -> None:
    """A request that goes on past the grace is cancelled, and the worker is told."""
    cluster = await start_cluster(doing(Say((1,)), Hang()))
    running = asyncio.create_task(failed(cluster.front.inference.Generate(api.GenerateRequest(text="x"))))
    await until(lambda: len(cluster.worker.submits) == 1)
    await cluster.front.router.stop(grace=0.1)
    _, error = await running

    assert error.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)
    await until(lambda: not cluster.worker.running)


async def test_background_work_that_takes_no_notice_does_not_keep_a_router(start_cluster: StartCluster) -> None:
    """A library swallows a cancellation now and then; the router ends all the same, and no pod waits to be killed."""
    cluster = await start_cluster()
    swallowed: list[bool] = []

    async def asking() -> None:
        while True:
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                if swallowed:
                    raise
                swallowed.append(True)

    cluster.front.router._keep_running("asking", asking())
    await asyncio.sleep(0)
    await asyncio.wait_for(cluster.front.router.stop(0), 10)
    assert [True] == swallowed


async def test_off_loopback_needs_insecure(tokenizer: Tokenizer) -> None:
    """A router does not open itself to the network in the clear unless told to."""
    with pytest.raises(StartError, match=r"router\.host"):
        Router(RouterConfig(model_dir="m", host="0.0.0.0"), tokenizer)


async def test_a_taken_port_is_a_clear_error(start_router: StartRouter, model_dir: Path) -> None:
    """Two routers on one port: the second says which setting is in the way, and leaves nothing running."""
    front = await start_router()
    port = int(front.listening.address.rpartition(":")[2])
    config = RouterConfig(model_dir=str(model_dir), port=port, http_port=-1, metrics_port=-1)
    with pytest.raises(StartError, match=rf"router\.port.*{port}"):
        await run(config)


async def test_a_taken_http_port_is_told_by_its_name(start_router: StartRouter, model_dir: Path) -> None:
    """Not as the gRPC port, which was free."""
    front = await start_router(http_port=0)
    port = int(front.listening.http.rpartition(":")[2])
    config = RouterConfig(model_dir=str(model_dir), port=0, http_port=port, metrics_port=-1)
    with pytest.raises(StartError, match=r"router\.http_port: .*0 takes a free one"):
        await run(config)


async def test_run_serves_until_told_to_stop(model_dir: Path) -> None:
    """`run` tells where it listens and returns once its event is set."""
    stop, heard = asyncio.Event(), asyncio.Queue[Listening]()
    config = RouterConfig(model_dir=str(model_dir), port=0, http_port=-1, metrics_port=-1)
    running = asyncio.create_task(run(config, on_listening=heard.put_nowait, stop=stop))
    listening = await heard.get()
    async with grpc.aio.insecure_channel(listening.address) as channel:
        await channel.channel_ready()
    stop.set()
    await asyncio.wait_for(running, 5)


@pytest.fixture
async def worker(tokenizer: Tokenizer) -> AsyncIterator[ScriptedWorker]:
    """Says a few bytes, slowly."""
    async with ScriptedWorker(saying(tokenizer.encode("hello"), pause=0.02)) as made:
        yield made


async def start_process(tmp_path: Path, **settings: Any) -> asyncio.subprocess.Process:
    """A router in a process of its own."""
    file = tmp_path / "router.json"
    file.write_text(json.dumps({"port": 0, "http_port": -1, "metrics_port": -1, **settings}))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    return await asyncio.create_subprocess_exec(
        sys.executable, "-m", "shoal.router", "--config", str(file),
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment,
    )  # fmt: skip


async def test_the_process_serves_logs_and_drains(tmp_path: Path, model_dir: Path, worker: ScriptedWorker) -> None:
    """It prints its address, writes its ready file, finishes what runs at SIGTERM, logs JSON without text, exits 0."""
    ready = tmp_path / "ready.json"
    process = await start_process(
        tmp_path, model_dir=str(model_dir), workers=[worker.address], ready_file=str(ready), router_id="r7"
    )
    assert process.stdout is not None
    assert process.stderr is not None
    printed = json.loads(await process.stdout.readline())
    assert json.loads(ready.read_text()) == printed
    async with grpc.aio.insecure_channel(printed["address"]) as channel:
        stub: Any = InferenceServiceStub(channel)
        call = aiter(stub.Chat(user("topsecret", request_id="mine")))
        assert (await anext(call)).HasField("started")
        process.send_signal(signal.SIGTERM)
        events = [event async for event in call]
    _, logged = await asyncio.wait_for(process.communicate(), 10)

    assert events[-1].HasField("done")
    assert process.returncode == 0
    assert not ready.exists()
    lines = [json.loads(line) for line in logged.decode().splitlines() if line.startswith("{")]
    assert {"router_listening", "worker_connected", "request_ended", "router_stopped"} <= {
        line["event"] for line in lines
    }
    assert {line["router"] for line in lines} == {"r7"}
    assert [line["request"] for line in lines if line["event"] == "request_ended"] == ["mine"]
    assert b"topsecret" not in logged
    assert b"hello" not in logged


async def test_a_second_signal_ends_the_draining(tmp_path: Path, model_dir: Path) -> None:
    """Who is impatient is obeyed: a request that would go on for ever does not keep the process."""
    async with ScriptedWorker(doing(Say((1,)), Hang())) as hanging:
        process = await start_process(tmp_path, model_dir=str(model_dir), workers=[hanging.address])
        assert process.stdout is not None
        printed = json.loads(await process.stdout.readline())
        async with grpc.aio.insecure_channel(printed["address"]) as channel:
            stub: Any = InferenceServiceStub(channel)
            call = aiter(stub.Chat(user("x")))
            assert (await anext(call)).HasField("started")
            process.send_signal(signal.SIGINT)
            await asyncio.sleep(0.2)
            assert process.returncode is None
            process.send_signal(signal.SIGINT)
            await asyncio.wait_for(process.communicate(), 5)
            await failed(call)

    assert process.returncode == 0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{}", "router.model_dir is missing"),
        ('{"model_dir": "/nowhere"}', "/nowhere/tokenizer.json cannot be read"),
        ('{"model_dir": "m", "prot": 3}', "router.prot is not a setting"),
        ("[]", "must hold one JSON object"),
        ("model_dir = 3", "Expecting value"),
    ],
)
def test_a_router_that_cannot_start_says_why(
    text: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One line on stderr and exit status 2, no traceback."""
    file = tmp_path / "router.json"
    file.write_text(text)
    status = main(["--config", str(file)])
    structlog.reset_defaults()
    printed = capsys.readouterr().err

    assert status == 2
    assert message in printed
    assert "Traceback" not in printed
