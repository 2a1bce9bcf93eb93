"""How tests talk to a router."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterable, Callable
from typing import TypeVar

import grpc
import grpc.aio

from shoal.proto.v1 import inference_pb2 as api

Event = TypeVar("Event")


def user(text: str, **fields: object) -> api.ChatRequest:
    """A request in which the user says one thing."""
    return api.ChatRequest(messages=[api.Message(role=api.ROLE_USER, content=text)], **fields)  # type: ignore[arg-type]  # by name


async def events_of(stream: AsyncIterable[Event]) -> list[Event]:
    """All events until the end."""
    return [event async for event in stream]


async def failed(stream: AsyncIterable[Event]) -> tuple[list[Event], grpc.aio.AioRpcError]:
    """The events until the error, and the error."""
    events: list[Event] = []
    try:
        async for event in stream:
            events.append(event)
    except grpc.aio.AioRpcError as error:
        return events, error
    raise AssertionError(f"the stream ended well after {len(events)} events")


def trailing(error: grpc.aio.AioRpcError) -> dict[str, str]:
    """Trailing metadata."""
    return {str(key): str(value) for key, value in error.trailing_metadata() or ()}


def answer_of(events: list[api.ChatResponse]) -> str:
    """The text of the final channel."""
    return "".join(event.text.text for event in events)


def kinds_of(events: list[api.ChatResponse]) -> list[str]:
    """What happened, repetitions once."""
    kinds = [str(event.WhichOneof("event")) for event in events]
    return [kind for i, kind in enumerate(kinds) if i == 0 or kinds[i - 1] != kind]


async def until(holds: Callable[[], bool], seconds: float = 20.0) -> None:
    """Wait until it holds; fails the test when it does not in time."""
    give_up = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < give_up, "it did not happen in time"
        await asyncio.sleep(0.005)
