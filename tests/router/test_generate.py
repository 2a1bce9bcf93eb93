"""Generate through a real socket, a router and a scripted worker."""

from __future__ import annotations

from shoal.proto.v1 import inference_pb2 as api
from shoal.router.scripted_worker import saying
from shoal.router.tokenizer import Tokenizer
from tests.router.conftest import StartCluster


async def test_streams_tokens_with_whole_characters(start_cluster: StartCluster, tokenizer: Tokenizer) -> None:
    """Each token is an event of its own; text comes with the token that completes a character."""
    ids = tokenizer.encode("aé€")
    cluster = await start_cluster(saying(ids, step=4))

    events = [event async for event in cluster.front.inference.Generate(api.GenerateRequest(text="x"))]

    assert events[0].WhichOneof("event") == "started"
    assert [[i] for i in ids] == [list(event.tokens.ids) for event in events[1:-1]]
    assert [event.tokens.text for event in events[1:-1]] == ["a", "", "é", "", "", "€"]
    assert events[-1].done.finish_reason == api.FINISH_REASON_STOP
