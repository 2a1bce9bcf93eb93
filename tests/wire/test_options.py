"""Channel arguments: what they make a connection do."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time

import grpc
import grpc.aio
import pytest

from shoal.proto.v1 import worker_pb2 as pb
from shoal.proto.v1.worker_pb2_grpc import WorkerServiceStub
from shoal.wire.credentials import open_channel
from shoal.wire.options import client_options

_SERVER = """
import asyncio, grpc.aio
from shoal.router.fleet.scripted_worker import Hang, ScriptedWorker, doing

async def main():
    async with ScriptedWorker(doing(Hang())) as worker:
        print(worker.address, flush=True)
        await asyncio.sleep(60)

asyncio.run(main())
"""


async def test_a_stopped_peer_is_noticed() -> None:
    """A process that stands still with open sockets is given up after ping interval and timeout, not after a minute."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    peer = await asyncio.create_subprocess_exec(
        sys.executable, "-c", _SERVER, stdout=asyncio.subprocess.PIPE, env=environment
    )
    assert peer.stdout is not None
    try:
        address = (await peer.stdout.readline()).decode().strip()
        async with open_channel(address, client_options(ping_every_ms=200, ping_timeout_ms=500)) as channel:
            call = WorkerServiceStub(channel).Connect()
            await call.write(pb.ConnectRequest(hello=pb.Hello(router_id="r", protocol=1)))
            assert isinstance(await call.read(), pb.ConnectResponse)
            os.kill(peer.pid, signal.SIGSTOP)
            stopped = time.monotonic()
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await asyncio.wait_for(call.read(), 10)
            noticed = time.monotonic() - stopped
    finally:
        peer.kill()
        await peer.wait()
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    assert noticed < 5
