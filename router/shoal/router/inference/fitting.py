"""Leaving out the oldest turns of a conversation that is longer than the context. Pure.

A turn begins where the user speaks after somebody else did; it is left out as a whole, so no call loses its result.
Instructions stay wherever they were said, and so does everything from `kept_from` on.
"""

from __future__ import annotations

from collections.abc import Sequence

from shoal.proto.v1 import inference_pb2 as api
from shoal.router.harmony.message import ChatMessage, visible

_SHARE = 8  # of the context that is left for an answer whose length nobody said


def room_for_answer(limits: api.Limits, max_context: int) -> int:
    """Tokens to leave for the answer: as many as were asked for, at most half of the context.

    >>> room_for_answer(api.Limits(max_tokens=100), 4096), room_for_answer(api.Limits(), 4096)
    (100, 512)
    """
    wanted = limits.max_tokens if limits.HasField("max_tokens") else max_context // _SHARE
    return max(1, min(wanted, max_context // 2))


def last_turn(messages: Sequence[ChatMessage]) -> int:
    """Where the last turn begins.

    >>> said = [ChatMessage("user", "a"), ChatMessage("assistant", "b"), ChatMessage("user", "c")]
    >>> last_turn(said), last_turn(said[:1]), last_turn([])
    (2, 0, 0)
    """
    begins = _begins(messages)
    return begins[-1] if begins else 0


def without_oldest(messages: Sequence[ChatMessage], excess: int, kept_from: int) -> tuple[ChatMessage, ...]:
    """The messages without as many of the oldest turns before `kept_from` as have to go for `excess` tokens fewer; all
    of those turns when that is not enough. Every message has its ids.
    """
    seen = {id(message) for message in visible(messages)}
    begins = [place for place in _begins(messages) if place < kept_from]
    ends = [*begins[1:], kept_from][: len(begins)]
    gone: set[int] = set()
    for begin, end in zip(begins, ends, strict=True):
        if excess <= 0:
            break
        for place in range(begin, end):
            message = messages[place]
            if message.role in ("system", "developer"):
                continue
            gone.add(place)
            if id(message) in seen and message.rendered is not None:
                excess -= len(message.rendered.ids)
    return tuple(message for place, message in enumerate(messages) if place not in gone)


def _begins(messages: Sequence[ChatMessage]) -> list[int]:
    """Where turns begin; what an assistant said before any user did is a turn, too."""
    begins, inside = [], ""
    for place, message in enumerate(messages):
        if message.role in ("system", "developer"):
            continue
        if not inside or (message.role == "user" and inside != "user"):
            begins.append(place)
        inside = message.role
    return begins
