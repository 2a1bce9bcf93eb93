"""A worker that stands still with open sockets, and comes back later."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time

from shoal.router.fleet.backend import Tokens
from shoal.router.fleet.pool import Member, WorkerPool
from shoal.router.fleet.scripted_worker import ScriptedWorker, saying
from tests.router.fleet.pools import connected, work

_SERVER = """
import asyncio
from shoal.router.fleet.scripted_worker import ScriptedWorker, saying

async def main():
    async with ScriptedWorker(saying(list(range(100)), pause=0.05), worker_id="stopped") as worker:
        print(worker.address, flush=True)
        await asyncio.sleep(60)

asyncio.run(main())
"""


async def test_a_stopped_worker_is_left_and_cannot_speak_into_the_stream_again(pool: WorkerPool) -> None:
    """SIGSTOP in the middle: the sequence goes on elsewhere within the ping's patience; what the worker still had to
    say when it returns reaches nobody."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", _SERVER, stdout=asyncio.subprocess.PIPE, env=environment
    )
    assert process.stdout is not None
    try:
        address = (await process.stdout.readline()).decode().strip()
        async with ScriptedWorker(saying([500, 501], pause=1.0)) as other:
            pool.set_members([Member(address)])
            stream = pool.submit(work())
            told: list[int] = []
            stopped = 0.0
            async for output in stream:
                told += output.ids if isinstance(output, Tokens) else ()
                if len(told) == 3 and not stopped:
                    await connected(pool, other, also=[address])
                    os.kill(process.pid, signal.SIGSTOP)
                    stopped = time.monotonic()
                if 500 in told and stopped > 0:
                    noticed, stopped = time.monotonic() - stopped, -1.0
                    os.kill(process.pid, signal.SIGCONT)
    finally:
        process.kill()
        await process.wait()
    said = told.index(500)
    assert told == [*range(said), 500, 501]
    assert noticed < 6.0
