"""Chat through a real socket, a router and a scripted worker."""

from __future__ import annotations

from shoal.proto.v1 import inference_pb2 as api
from shoal.router.scripted_worker import saying
from shoal.router.tokenizer import Tokenizer
from tests.router.byte_tokenizer import ids_of
from tests.router.conftest import StartCluster

ANSWER = "<|channel|>analysis<|message|>hm<|end|><|start|>assistant<|channel|>final<|message|>4 é<|return|>"


async def test_streams_reasoning_then_answer(start_cluster: StartCluster, tokenizer: Tokenizer) -> None:
    """A turn is told as started, reasoning, text and done, in this order."""
    cluster = await start_cluster(saying(ids_of(tokenizer, ANSWER)))
    request = api.ChatRequest(messages=[api.Message(role=api.ROLE_USER, content="2+2?")])

    events = [event async for event in cluster.front.inference.Chat(request)]

    kinds = [event.WhichOneof("event") for event in events]
    assert kinds == ["started", "reasoning", "reasoning", "text", "text", "text", "done"]
    assert "".join(event.reasoning.text for event in events) == "hm"
    assert "".join(event.text.text for event in events) == "4 é"
    assert events[-1].done.finish_reason == api.FINISH_REASON_STOP


async def test_remembers_a_session(start_cluster: StartCluster, tokenizer: Tokenizer, redis_url: str) -> None:
    """The second turn's prompt holds the first turn's question and answer, without its reasoning."""
    cluster = await start_cluster(saying(ids_of(tokenizer, ANSWER)), redis_url=redis_url)
    for text in ("2+2?", "and 3+3?"):
        request = api.ChatRequest(messages=[api.Message(role=api.ROLE_USER, content=text)], session_id="s")
        async for _ in cluster.front.inference.Chat(request):
            pass

    prompt = tokenizer.decode([token for part in cluster.worker.submits[1].prompt for token in part.ids])
    expected = (
        "<|start|>user<|message|>2+2?<|end|><|start|>assistant<|channel|>final<|message|>4 é<|end|>"
        "<|start|>user<|message|>and 3+3?<|end|><|start|>assistant"
    )
    assert prompt.endswith(expected)
    assert "hm" not in prompt
