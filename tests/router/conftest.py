"""A router and a scripted worker, each on a real socket."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc.aio
import pytest
import redis.asyncio

from shoal.proto.v1.inference_pb2_grpc import InferenceServiceStub, SessionServiceStub
from shoal.router.config import RouterConfig
from shoal.router.fleet.scripted_worker import Script, ScriptedWorker
from shoal.router.server import Listening, Router
from shoal.router.store.connect import connect
from shoal.router.tokenizer import Tokenizer
from shoal.router.tools.runner import ToolRunner
from tests.router.byte_tokenizer import write_tokenizer
from tests.router.talking import until

if TYPE_CHECKING:
    from shoal.proto.v1.inference_pb2_grpc import InferenceServiceAsyncStub, SessionServiceAsyncStub


@pytest.fixture(scope="session")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a tokenizer.json."""
    return write_tokenizer(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="session")
def tokenizer(model_dir: Path) -> Tokenizer:
    """The vocabulary of `model_dir`."""
    return Tokenizer.load(model_dir)


@pytest.fixture
async def client(redis_url: str) -> AsyncIterator[redis.asyncio.Redis]:
    """Connected to the emptied server."""
    made = connect(redis_url)
    assert isinstance(made, redis.asyncio.Redis)
    yield made
    await made.aclose()


@dataclass(frozen=True)
class Front:
    """A running router and how to talk to it."""

    router: Router
    listening: Listening
    channel: grpc.aio.Channel
    inference: InferenceServiceAsyncStub
    sessions: SessionServiceAsyncStub


@dataclass(frozen=True)
class Cluster:
    """One router in front of scripted workers."""

    front: Front
    workers: list[ScriptedWorker]

    @property
    def worker(self) -> ScriptedWorker:
        """The only worker."""
        (worker,) = self.workers
        return worker


StartRouter = Callable[..., Awaitable[Front]]
StartCluster = Callable[..., Awaitable[Cluster]]


@pytest.fixture
async def start_router(model_dir: Path, tokenizer: Tokenizer) -> AsyncIterator[StartRouter]:
    """Starts routers (settings and tools of the server as keywords) and stops them after the test."""
    async with AsyncExitStack() as stack:

        async def start(tools: Sequence[ToolRunner] = (), **settings: Any) -> Front:
            defaults = {
                "model_dir": str(model_dir),
                "port": 0,
                "http_port": -1,
                "metrics_port": -1,
                "worker_wait_seconds": 2.0,
            }
            router = Router(RouterConfig(**{**defaults, **settings}), tokenizer, tools)
            stack.push_async_callback(router.stop, 0)
            listening = await router.start()
            channel = await stack.enter_async_context(grpc.aio.insecure_channel(listening.address))
            return Front(router, listening, channel, InferenceServiceStub(channel), SessionServiceStub(channel))

        yield start


@pytest.fixture
async def start_cluster(start_router: StartRouter) -> AsyncIterator[StartCluster]:
    """Starts scripted workers, one per script, and a router in front of them."""
    async with AsyncExitStack() as stack:

        async def start(*scripts: Script, welcome: dict[str, Any] | None = None, **settings: Any) -> Cluster:
            workers = [ScriptedWorker(script, worker_id=f"w{i}", **(welcome or {})) for i, script in enumerate(scripts)]
            for worker in workers:
                await stack.enter_async_context(worker)
            front = await start_router(workers=tuple(worker.address for worker in workers), **settings)
            await until(lambda: len(front.router.pool.eligible()) == len(workers))
            return Cluster(front, workers)

        yield start
