"""A router's end of the worker stream, for tests: real gRPC over a real socket."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import grpc

from shoal.proto.v1 import worker_pb2 as pb
from shoal.proto.v1 import worker_pb2_grpc


def submit_message(
    name: str,
    tokens: Sequence[int],
    *,
    max_tokens: int = 8,
    temperature: float = 0.0,
    attempt: int = 0,
    seed: int = 0,
) -> pb.Submit:
    """A plain request."""
    return pb.Submit(
        request_id=name,
        attempt=attempt,
        prompt=[pb.PromptPart(role=pb.TOKEN_ROLE_GIVEN, ids=tokens)],
        seed=seed,
        sampling=pb.WorkerSampling(temperature=temperature, top_p=1.0, repetition_penalty=1.0),
        limits=pb.WorkerLimits(max_tokens=max_tokens),
    )


class StreamClient:
    """One open stream to a worker. `events` yields everything it says."""

    def __init__(self, address: str, *, kv_events: bool = False) -> None:
        self._channel = grpc.insecure_channel(address)
        self.stub = worker_pb2_grpc.WorkerServiceStub(self._channel)
        self._requests: queue.SimpleQueue[pb.ConnectRequest | None] = queue.SimpleQueue()
        self._answers: queue.SimpleQueue[pb.ConnectResponse | grpc.RpcError] = queue.SimpleQueue()
        self._call = self.stub.Connect(iter(self._requests.get, None))
        threading.Thread(target=self._listen, daemon=True).start()
        self._requests.put(pb.ConnectRequest(hello=pb.Hello(router_id="test", protocol=1, kv_events=kv_events)))
        self.welcome = self.next().welcome

    def send(self, message: pb.Submit | pb.Cancel) -> None:
        request = (
            pb.ConnectRequest(submit=message) if isinstance(message, pb.Submit) else pb.ConnectRequest(cancel=message)
        )
        self._requests.put(request)

    def next(self, timeout: float = 30.0) -> pb.ConnectResponse:
        """The worker's next message. Raises grpc.RpcError when the stream ended in one, queue.Empty when silent."""
        answer = self._answers.get(timeout=timeout)
        if isinstance(answer, grpc.RpcError):
            raise answer
        return answer

    def outputs(self, name: str) -> Iterator[pb.SequenceOutput]:
        """Outputs of one request until it finishes; other messages are dropped."""
        while True:
            for output in self.next().step.outputs:
                if output.request_id == name:
                    yield output
                    if output.finish:
                        return

    def close(self) -> None:
        self._requests.put(None)
        self._call.cancel()
        self._channel.close()

    def _listen(self) -> None:
        try:
            for answer in self._call:
                self._answers.put(answer)
        except grpc.RpcError as error:
            self._answers.put(error)


@contextmanager
def connected(address: str, *, kv_events: bool = False) -> Iterator[StreamClient]:
    """A stream that is closed at the end."""
    client = StreamClient(address, kv_events=kv_events)
    try:
        yield client
    finally:
        client.close()
