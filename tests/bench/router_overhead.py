"""What the router costs: the same streams through it and straight from the worker, taken in turn.

One worker process, one router process, this process as the client of both.
"""

from __future__ import annotations

import json
import multiprocessing
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc

from shoal.cluster.placement import even_placement
from shoal.proto.v1 import inference_pb2 as api
from shoal.proto.v1 import inference_pb2_grpc
from shoal.workers.config import WorkerConfig
from shoal.workers.experts.group import GroupSpec, Member
from shoal.workers.worker import Worker
from tests.bench.record import Row, paired, seconds
from tests.workers.clients import StreamClient, connected, submit_message
from tests.workers.engines import random_tokens

STREAMS, PROMPT, NEW = 8, 32, 64


def rows(path: Path, rounds: int) -> list[Row]:
    """Streamed tokens/s through the router beside the worker's own stream."""
    with _worker(path) as worker, _router(path, worker) as router, connected(worker) as direct:
        prompts = [random_tokens(PROMPT, 256, seed=i) for i in range(STREAMS)]
        numbers = iter(range(1_000_000))
        with grpc.insecure_channel(router) as channel:
            stub = inference_pb2_grpc.InferenceServiceStub(channel)
            through: list[float] = []
            bare: list[float] = []
            _through_router(stub, prompts)  # warms both
            for _ in range(rounds):
                through.append(STREAMS * NEW / seconds(lambda: _through_router(stub, prompts)))
                bare.append(STREAMS * NEW / seconds(lambda: _straight(direct, prompts, next(numbers))))
    return [paired(f"router, {STREAMS} streams", "tok/s", through, "the worker's own stream", bare)]


def _through_router(stub: inference_pb2_grpc.InferenceServiceStub, prompts: list[list[int]]) -> None:
    def one(prompt: list[int]) -> None:
        request = api.GenerateRequest(
            tokens=api.TokenIds(ids=prompt),
            sampling=api.Sampling(temperature=0.0),
            limits=api.Limits(max_tokens=NEW, ignore_eos=True),
        )
        tokens = sum(len(event.tokens.ids) for event in stub.Generate(request))
        assert tokens == NEW, f"{tokens} tokens"

    threads = [threading.Thread(target=one, args=(prompt,)) for prompt in prompts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def _straight(client: StreamClient, prompts: list[list[int]], number: int) -> None:
    for i, prompt in enumerate(prompts):
        client.send(submit_message(f"{number}-{i}", prompt, max_tokens=NEW))
    left = STREAMS * NEW
    while left:
        left -= sum(len(output.ids) for output in client.next().step.outputs)


@contextmanager
def _worker(path: Path) -> Iterator[str]:
    """A worker alone in its group, in a process of its own; its address."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(str(path), theirs), daemon=True)
    process.start()
    try:
        yield ours.recv()
    finally:
        process.kill()
        process.join()


def _serve(path: str, pipe: Any) -> None:
    worker = Worker(WorkerConfig(model=path, kv_tokens=8192, prefix_cache=False))
    facts = worker.prepare()
    member = Member(0, facts.worker_id, facts.address)
    placement = even_placement(facts.num_layers, facts.num_experts, 1)
    worker.reconfigure(GroupSpec("g0", 1, "127.0.0.1", 0, (member,), placement), together=True)
    pipe.send(facts.address)
    threading.Event().wait()


@contextmanager
def _router(path: Path, worker: str) -> Iterator[str]:
    """A router in a process of its own that knows the one worker; its address."""
    config = {
        "model_dir": str(path),
        "port": 0,
        "http_port": -1,
        "metrics_port": -1,
        "workers": [worker],
        "log_level": "warning",
    }
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        file.write(json.dumps(config))
        file.flush()
        command = [sys.executable, "-m", "shoal.router", "--config", file.name]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            try:
                assert process.stdout is not None, "no pipe"
                yield json.loads(process.stdout.readline())["address"]
            finally:
                process.terminate()
