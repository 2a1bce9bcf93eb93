"""What is said of a worker's failure; Ray itself is met in tests/e2e."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import Any, cast

import pytest
from ray.exceptions import RayActorError, RayError, RayTaskError

from shoal.cluster import ray_fleet
from shoal.cluster.ray_fleet import one_line

DIED = """The actor died unexpectedly before finishing this task.
\tclass_name: WorkerActor
\tpid: 22756
The actor is dead because its worker process has died. Worker exit type: SYSTEM_ERROR Worker exit detail: Worker
 unexpectedly exits with a connection error code 2. End of file. Some common causes include: (1) the process""".replace(
    "Worker\n", "Worker"
)


class DeathError(RayActorError):
    """Ray's error of a dead actor, with the text that Ray gives it."""

    def __init__(self, text: str) -> None:
        self._text = text

    def __str__(self) -> str:
        return self._text


def test_a_workers_exception_is_its_kind_and_message() -> None:
    """Not the two stack traces that Ray wraps around it."""
    cause = ValueError("shard 2 is truncated")
    error = RayTaskError("prepare", "Traceback…\nlong\n", cause)  # type: ignore[no-untyped-call]  # ray's own
    assert one_line(error) == "ValueError: shard 2 is truncated"


def test_a_death_is_told_with_its_reason() -> None:
    """What happened, without the page of advice."""
    expected = "its process died: Worker unexpectedly exits with a connection error code 2. End of file"
    assert one_line(DeathError(DIED)) == expected
    killed = "The actor is dead because it was killed by `ray.kill`."
    assert one_line(DeathError(f"The actor died.\n{killed}")) == f"its process died: {killed}"


def test_a_constructor_that_fails_is_told_by_its_exception() -> None:
    """Ray reports it as a death; the last line of the trace says what it was."""
    text = "The actor died because of an error raised in its creation task, …\n  File …\nConfigError: worker.threads"
    assert one_line(DeathError(text)) == "ConfigError: worker.threads"


def test_anything_else_is_its_last_line() -> None:
    """Whatever comes, it is one line."""
    assert one_line(RayError("first\nlast\n\n")) == "last"
    assert one_line(RayError("")) == "no message"


async def test_waiting_for_places_keeps_no_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nodes may be minutes away, and a machine with few cores has few threads: the rest goes on meanwhile."""
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(1))
    there: list[str] = []
    monkeypatch.setattr(
        ray_fleet, "placement_group_table", lambda place: {"state": "CREATED" if place in there else "PENDING"}
    )
    waiting = [asyncio.create_task(ray_fleet._made(cast(Any, f"g0-{rank}"), 60.0)) for rank in range(8)]
    await asyncio.sleep(0.1)
    assert "done" == await asyncio.wait_for(asyncio.to_thread(lambda: "done"), 10.0)
    assert not any(task.done() for task in waiting)
    there += [f"g0-{rank}" for rank in range(8)]
    assert [True] * 8 == await asyncio.gather(*waiting)


async def test_a_place_that_never_comes_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """When its time is over."""
    monkeypatch.setattr(ray_fleet, "placement_group_table", lambda place: {"state": "PENDING"})
    assert not await ray_fleet._made(cast(Any, "g0-0"), 0.1)
