"""A secret that is cut in two anywhere, over every way of asking: no part of it leaves or is kept."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from typing import Any

import grpc
import pytest

from shoal.proto.v1 import inference_pb2 as api
from shoal.proto.v1 import worker_pb2 as pb
from shoal.router.fleet.scripted_worker import STOPPED, Action, Say, Script
from shoal.router.safeguards.config import SafeguardsConfig
from shoal.router.tokenizer import Tokenizer
from tests.router.byte_tokenizer import ids_of
from tests.router.conftest import Cluster, StartCluster
from tests.router.http.asking import ask
from tests.router.safeguards.test_canaries import everything_in
from tests.router.talking import events_of, failed, trailing, user

CARD = "4111 1111 1111 1111"
TURN = (
    f"<|channel|>analysis<|message|>is it {CARD}?<|end|>"
    f"<|start|>assistant<|channel|>final<|message|>pay {CARD} now<|end|>"
    f'<|start|>assistant<|channel|>commentary to=functions.pay<|message|>{{"card": "{CARD}"}}<|call|>'
)
TOOL = {"type": "function", "name": "pay", "parameters": {"type": "object"}}


def places_in(ids: list[int], secret: list[int]) -> list[int]:
    """Every place within every occurrence of the secret."""
    begins = [at for at in range(len(ids)) if ids[at : at + len(secret)] == secret]
    return [begin + at for begin in begins for at in range(len(secret) + 1)]


def cut(ids: list[int], places: Iterable[int]) -> Script:
    """Each submit is cut in two at the next place; log-probabilities are told."""
    following = iter(places)

    async def script(submit: pb.Submit) -> AsyncIterator[Action]:
        place = next(following)
        for part, finish in ((ids[:place], pb.SEQUENCE_FINISH_UNSPECIFIED), (ids[place:], STOPPED)):
            likeliest = tuple(((token, -0.1),) for token in part)
            yield Say(tuple(part), finish, logprobs=(-0.1,) * len(part), likeliest=likeliest)

    return script


async def start(start_cluster: StartCluster, script: Script, redis_url: str) -> Cluster:
    """A router that redacts cards."""
    return await start_cluster(
        script, safeguards=SafeguardsConfig(redact=("card",)), redis_url=redis_url, http_port=0, model_name="model"
    )


def tells(text: str) -> bool:
    """Whether it has any part of the card that is more than an issuer has in common."""
    digits = text.replace(" ", "").replace("\\u0020", "")
    return "41111" in digits or "111111" in digits or "4111 1" in text


async def test_turns_over_every_api(start_cluster: StartCluster, tokenizer: Tokenizer, redis_url: str) -> None:
    """gRPC, chat completions and responses, streamed: reasoning, answer, arguments, log-probabilities; then sessions,
    stored responses and the journal."""
    ids = ids_of(tokenizer, TURN)
    places = places_in(ids, tokenizer.encode(CARD))
    assert len(places) == 3 * (len(CARD) + 1)
    cluster = await start(start_cluster, cut(ids, (place for place in places for _ in range(3))), redis_url)
    inference, address, told = cluster.front.inference, cluster.front.listening.http, list[str]()
    chat: dict[str, Any] = {"model": "model", "messages": [{"role": "user", "content": "x"}], "stream": True}
    chat |= {"logprobs": True, "top_logprobs": 1, "tools": [{"type": "function", "function": {"name": "pay"}}]}
    turn = {"model": "model", "input": "x", "stream": True, "tools": [TOOL]}
    for place in range(len(places)):
        asked = user("x", session_id=f"s{place}", request_id=f"r{place}", logprobs=True, top_logprobs=1)
        asked.tools.add(name="pay")
        told += [str(event) for event in await events_of(inference.Chat(asked))]
        for path, body in (("/v1/chat/completions", chat), ("/v1/responses", turn)):
            answer = await ask(address, path, body)
            assert answer.text.count("[card]") >= 3, answer.text
            told.append(answer.text)
    _, error = await failed(inference.Resume(api.ResumeRequest(request_id="r0")))
    session = await cluster.front.sessions.GetSession(api.GetSessionRequest(session_id="s0"))
    kept = await everything_in(cluster.front.router.redis.client, tokenizer)

    assert not [text for text in (*told, str(session)) if tells(text)]
    assert not [key for key, text in kept.items() if tells(text)]
    assert (error.code(), trailing(error)["shoal-reason"]) == (grpc.StatusCode.INVALID_ARGUMENT, "content_refused")


async def test_raw_text_over_both_apis(start_cluster: StartCluster, tokenizer: Tokenizer, redis_url: str) -> None:
    """gRPC and completions, streamed."""
    ids = tokenizer.encode(f"pay {CARD} now")
    places, told = places_in(ids, tokenizer.encode(CARD)), list[str]()
    cluster = await start(start_cluster, cut(ids, (place for place in places for _ in range(2))), redis_url)
    body = {"model": "model", "prompt": "x", "stream": True, "logprobs": 1, "max_tokens": 100}
    for _ in places:
        request = api.GenerateRequest(text="x", logprobs=True, top_logprobs=1)
        told += [str(event) for event in await events_of(cluster.front.inference.Generate(request))]
        answer = await ask(cluster.front.listening.http, "/v1/completions", body)
        assert "[card]" in answer.text
        told.append(answer.text)
    assert not [text for text in told if tells(text)]


@pytest.mark.parametrize("text", [CARD, "4111111", "1111 1111", "41 and 111111"])
def test_the_test_would_see_it(text: str) -> None:
    """A card, or half of one, in an answer."""
    assert tells(f"is {text} it")
