"""A span per sequence on a worker: from its acceptance over its first token to its end.

Seen in the messages that leave the worker, on the thread that builds them, so the engine knows nothing of it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping

from shoal.proto.v1 import worker_pb2 as pb
from shoal.wire.tracing import Span, Tracing
from shoal.workers.loop import Post

Key = tuple[str, int, int]  # request_id, choice, attempt


class TracedPost:
    """Implements `Post` over another one."""

    def __init__(self, post: Post, tracing: Tracing, worker_id: str) -> None:
        self._post, self._tracing, self._worker_id = post, tracing, worker_id
        self._spans: dict[Key, Span] = {}
        self._lock = threading.Lock()

    def begin(self, submit: pb.Submit) -> None:
        """A sequence was accepted."""
        if not self._tracing.on:
            return
        span = self._tracing.begin(
            "sequence",
            submit.traceparent,
            shoal__worker=self._worker_id,
            shoal__request=submit.request_id,
            shoal__attempt=submit.attempt,
            gen_ai__usage__input_tokens=sum(len(part.ids) for part in submit.prompt),
        )
        with self._lock:
            self._spans[submit.request_id, submit.choice, submit.attempt] = span

    def send(self, stream: str, message: pb.ConnectResponse) -> None:
        if message.WhichOneof("message") == "refused":
            refused = message.refused
            self._end((refused.request_id, refused.choice, refused.attempt), error="refused")
        self._post.send(stream, message)

    def hand_over(self, build: Callable[[], Mapping[str, pb.ConnectResponse]]) -> None:
        self._post.hand_over((lambda: self._seen(build())) if self._tracing.on else build)

    def broadcast(self, message: pb.ConnectResponse) -> None:
        self._post.broadcast(message)

    def announce(self) -> None:
        self._post.announce()

    def _seen(self, messages: Mapping[str, pb.ConnectResponse]) -> Mapping[str, pb.ConnectResponse]:
        for message in messages.values():
            step = message.step
            for output in step.outputs:
                key = (output.request_id, output.choice, output.attempt)
                span = self._spans.get(key)
                if span is None:
                    continue
                span.event("step", shoal__step=step.step, shoal__epoch=step.epoch, shoal__offset=output.offset,
                           shoal__tokens=len(output.ids), shoal__running=step.running)  # fmt: skip
                if output.finish:
                    span.set(gen_ai__usage__output_tokens=output.offset + len(output.ids))
                    self._end(key)
        return messages

    def close(self) -> None:
        """End what is left, and send all of it."""
        for key in list(self._spans):
            self._end(key, error="the worker left")
        self._tracing.close()

    def _end(self, key: Key, error: str = "") -> None:
        with self._lock:
            span = self._spans.pop(key, None)
        if span is not None:
            span.end(error)
