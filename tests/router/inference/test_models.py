"""Models and tokens, asked over a real socket."""

from __future__ import annotations

import grpc
import pytest

from shoal.proto.v1 import inference_pb2 as api
from shoal.router.fleet.scripted_worker import saying
from shoal.router.tokenizer import Tokenizer
from tests.router.byte_tokenizer import ids_of
from tests.router.conftest import StartCluster, StartRouter
from tests.router.talking import events_of, failed, user

ANSWER = "<|channel|>final<|message|>4<|return|>"


async def test_the_model_is_listed(start_cluster: StartCluster, tokenizer: Tokenizer) -> None:
    """Under its name, with what workers say of it."""
    cluster = await start_cluster(saying([1]), model_name="gpt-oss-tiny")
    (model,) = (await cluster.front.inference.ListModels(api.ListModelsRequest())).models

    assert (model.id, model.ready, model.max_context) == ("gpt-oss-tiny", True, 4096)
    assert model.tokenizer_hash == tokenizer.hash


async def test_a_model_without_workers_is_not_ready(start_router: StartRouter) -> None:
    """It is listed all the same, under the directory's name."""
    front = await start_router()
    (model,) = (await front.inference.ListModels(api.ListModelsRequest())).models

    assert model.id != ""
    assert not model.ready


async def test_requests_may_name_the_model(start_cluster: StartCluster, tokenizer: Tokenizer) -> None:
    """Its own name is served, another one is NOT_FOUND."""
    cluster = await start_cluster(saying(ids_of(tokenizer, ANSWER)), model_name="a")
    events = await events_of(cluster.front.inference.Chat(user("?", model="a")))
    _, error = await failed(cluster.front.inference.Chat(user("?", model="b")))

    assert events[-1].WhichOneof("event") == "done"
    assert error.code() is grpc.StatusCode.NOT_FOUND


async def test_texts_are_tokenized_as_texts(start_router: StartRouter, tokenizer: Tokenizer) -> None:
    """A control token's name in a text is ordinary characters."""
    front = await start_router()
    answer = await front.inference.Tokenize(api.TokenizeRequest(text="<|end|>é"))

    assert list(answer.ids) == tokenizer.encode("<|end|>é")
    assert b"".join(answer.pieces).decode() == "<|end|>é"


async def test_turns_are_tokenized_as_they_are_read(start_cluster: StartCluster, tokenizer: Tokenizer) -> None:
    """The ids are those that a worker gets for the same request."""
    cluster = await start_cluster(saying(ids_of(tokenizer, ANSWER)))
    request = user("?", tools=[api.Tool(name="f")])
    answer = await cluster.front.inference.Tokenize(api.TokenizeRequest(chat=request))
    await events_of(cluster.front.inference.Chat(request))

    assert list(answer.ids) == [token for part in cluster.worker.submits[0].prompt for token in part.ids]


async def test_nothing_to_tokenize(start_router: StartRouter) -> None:
    """An empty request is refused by name."""
    front = await start_router()

    with pytest.raises(grpc.aio.AioRpcError, match="input is missing"):
        await front.inference.Tokenize(api.TokenizeRequest())
