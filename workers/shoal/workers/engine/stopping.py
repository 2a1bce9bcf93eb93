"""Whether a sequence has ended: pure functions of what it generated."""

from __future__ import annotations

from collections.abc import Sequence as Seq

from shoal.workers.engine.sequence import Finish, Sequence

LONGEST_LOOP = 64
"""Longest repeated pattern, in tokens, that counts as a loop."""


def finish_after(sequence: Sequence, max_context: int, token_bytes: Seq[bytes]) -> tuple[Finish | None, bool]:
    """Why the sequence ends with its last token, or None; and whether it repeats itself endlessly.

    Updates the tail kept for stop texts.
    """
    stop = sequence.stop
    finish = _finish(sequence, max_context, token_bytes)
    looping = stop.loop_limit > 0 and _loops(sequence.tokens, sequence.given_length, stop.loop_limit)
    return finish or (Finish.LOOP if looping and stop.end_loops else None), looping


def _finish(sequence: Sequence, max_context: int, token_bytes: Seq[bytes]) -> Finish | None:
    stop, token = sequence.stop, sequence.tokens[-1]
    enough = sequence.num_generated >= stop.min_tokens
    if token in stop.stop_token_ids and enough:
        return Finish.STOP_TOKEN
    constraint = sequence.constraint
    if constraint is not None and constraint.ended and constraint.position == sequence.num_generated:
        return Finish.STOP_TOKEN
    if stop.stop_bytes and _found_stop_text(sequence, token_bytes[token]) and enough:
        return Finish.STOP_BYTES
    if sequence.num_generated >= stop.max_tokens or len(sequence.tokens) >= max_context:
        return Finish.LENGTH
    return None


def replay_tail(sequence: Sequence, token_bytes: Seq[bytes]) -> None:
    """Rebuild the tail from tokens that earlier attempts generated."""
    if sequence.stop.stop_bytes:
        for token in sequence.tokens[sequence.given_length :]:
            _found_stop_text(sequence, token_bytes[token])


def _found_stop_text(sequence: Sequence, new: bytes) -> bool:
    """Append `new` to the tail and look for a stop text that ends inside it."""
    tail, texts = sequence.tail, sequence.stop.stop_bytes
    tail += new
    found = any(tail.find(text, max(0, len(tail) - len(new) - len(text) + 1)) >= 0 for text in texts)
    del tail[: max(0, len(tail) - max(map(len, texts)))]
    return found


def _loops(tokens: Seq[int], given: int, limit: int) -> bool:
    """Whether the last tokens are one pattern, `limit` times over, all behind the `given` ones."""
    end = len(tokens)
    for length in range(1, min(LONGEST_LOOP, (end - given) // limit) + 1):
        if limit > 1 and tokens[end - 1 - length] != tokens[end - 1]:
            continue  # most patterns end here
        pattern = tokens[end - length :]
        if all(tokens[end - length * (i + 1) : end - length * i] == pattern for i in range(1, limit)):
            return True
    return False
