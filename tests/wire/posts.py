"""A `Post` that keeps what is sent."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from shoal.proto.v1 import worker_pb2 as pb


class RecordedPost:
    """Builds messages at once."""

    def __init__(self) -> None:
        self.sent: list[pb.ConnectResponse] = []

    def send(self, stream: str, message: pb.ConnectResponse) -> None:
        """Keep it."""
        self.sent.append(message)

    def hand_over(self, build: Callable[[], Mapping[str, pb.ConnectResponse]]) -> None:
        """Build and keep them."""
        self.sent += build().values()

    def broadcast(self, message: pb.ConnectResponse) -> None:
        """Keep it."""
        self.sent.append(message)

    def announce(self) -> None:
        """Nothing to keep."""
