"""What safeguards keep out of answers is kept nowhere, nothing is done with it, nothing beside the text tells it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from shoal.proto.v1 import inference_pb2 as api
from shoal.proto.v1 import worker_pb2 as pb
from shoal.router.audit.config import AuditConfig
from shoal.router.fleet.scripted_worker import STOPPED, Action, Say, Script, saying
from shoal.router.harmony.builtin import PYTHON
from shoal.router.limits.config import LimitsConfig
from shoal.router.safeguards.config import SafeguardsConfig
from shoal.router.tokenizer import Tokenizer
from shoal.router.tools.runner import ToolOutput
from shoal.router.tools.scripted import ScriptedTool
from shoal.wire.status import RETRY_AFTER_KEY
from tests.router.access.showing import Ring, make_key, write_keys
from tests.router.byte_tokenizer import ids_of
from tests.router.conftest import StartCluster
from tests.router.http.asking import ask
from tests.router.inference.test_tools import taking_turns
from tests.router.safeguards.test_canaries import everything_in
from tests.router.safeguards.test_pipeline import CARD, MAIL, moderation, words
from tests.router.talking import answer_of, events_of, failed, trailing, until, user

__all__ = ["moderation"]

BOMB = "<|channel|>final<|message|>take a bomb<|return|>"
GREEDY = api.Sampling(temperature=0)


def telling(ids: list[int], step: int) -> Script:
    """Says `ids` with their log-probabilities and each as its own rival."""

    async def script(submit: pb.Submit) -> AsyncIterator[Action]:
        for begin in range(0, len(ids), step):
            some = tuple(ids[begin : begin + step])
            rivals = tuple(((token, -0.5),) for token in some)
            finish = STOPPED if begin + step >= len(ids) else pb.SEQUENCE_FINISH_UNSPECIFIED
            yield Say(some, finish, logprobs=(-0.5,) * len(some), likeliest=rivals)

    return script


def guards(how: str, url: str) -> SafeguardsConfig:
    """Against bombs, by a list or by a classifier."""
    return SafeguardsConfig(deny=("bomb",)) if how == "deny" else SafeguardsConfig(moderation_url=url)


@pytest.mark.parametrize("step", [1, 7, 1000])
async def test_log_probabilities_do_not_tell(start_cluster: StartCluster, tokenizer: Tokenizer, step: int) -> None:
    """What is taken out of reasoning, answers and the arguments of calls is not in the tokens beside them either."""
    said = (
        f"<|channel|>analysis<|message|>{MAIL}<|end|><|start|>assistant<|channel|>final<|message|>{MAIL}<|end|>"
        f'<|start|>assistant<|channel|>commentary to=functions.mail<|message|>{{"to": "{MAIL}"}}<|call|>'
    )
    ids = ids_of(tokenizer, said)
    cluster = await start_cluster(telling(ids, step), safeguards=SafeguardsConfig(redact=("email",)))
    chat, generate = cluster.front.inference.Chat, cluster.front.inference.Generate
    events: list[Any] = await events_of(
        chat(user("send", tools=[api.Tool(name="mail")], logprobs=True, top_logprobs=1))
    )
    raw = await events_of(generate(api.GenerateRequest(text="x", logprobs=True, top_logprobs=1)))

    assert any(event.HasField("tool_call") for event in events)
    told = [part for event in events for part in (event.text, event.reasoning, event.tool_call)]
    assert not any(part.logprobs for part in told)
    assert not any(event.tokens.ids or event.tokens.logprobs or event.tokens.likeliest for event in raw)


async def test_a_stray_token_does_not_part_a_secret(start_cluster: StartCluster, tokenizer: Tokenizer) -> None:
    """A control token in the middle of a number is left out, so what is around it is one text; the warning follows."""
    said = f"<|channel|>final<|message|>pay {CARD[:9]}<|constrain|>{CARD[9:]} now<|return|>"
    cluster = await start_cluster(
        saying(ids_of(tokenizer, said), step=1), safeguards=SafeguardsConfig(redact=("card",)), well_formed=False
    )
    events = await events_of(cluster.front.inference.Chat(user("x")))

    assert answer_of(events) == "pay [card] now"
    assert [event.warning.code for event in events if event.HasField("warning")] == ["stray_token"]
    assert events[-1].HasField("done")


@pytest.mark.parametrize("how", ["deny", "moderation"])
async def test_an_answer_that_is_refused_is_no_turn_of_its_session(
    start_cluster: StartCluster, tokenizer: Tokenizer, redis_url: str, moderation: Any, how: str
) -> None:
    """Refused at its very end, when all of it was generated: neither the session nor the response has it."""
    cluster = await start_cluster(
        saying(ids_of(tokenizer, BOMB)), safeguards=guards(how, moderation[0]), redis_url=redis_url,
        http_port=0, model_name="model",
    )  # fmt: skip
    await failed(cluster.front.inference.Chat(user("what", session_id="s")))
    told = await ask(cluster.front.listening.http, "/v1/responses", {"model": "model", "input": "x"})
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await cluster.front.sessions.GetSession(api.GetSessionRequest(session_id="s"))
    kept = await everything_in(cluster.front.router.redis.client, tokenizer)

    assert caught.value.code() is grpc.StatusCode.NOT_FOUND
    assert told.status == 400
    assert "bomb" not in told.text
    assert not [key for key, text in kept.items() if "bomb" in text and "request" not in key]


@pytest.mark.parametrize("how", ["deny", "moderation"])
async def test_a_call_that_is_refused_is_not_made(
    start_cluster: StartCluster, tokenizer: Tokenizer, moderation: Any, how: str
) -> None:
    """A tool of the server is not called with what may not be said."""
    call = "<|channel|>commentary to=python <|constrain|>code<|message|>print('bomb')<|call|>"
    tool = ScriptedTool(PYTHON, [ToolOutput("4")])
    cluster = await start_cluster(
        taking_turns(tokenizer, call, words("fine")), safeguards=guards(how, moderation[0]), tools=[tool]
    )
    await failed(cluster.front.inference.Chat(user("what", server_tools=["python"])))
    assert not tool.calls


async def test_a_classifier_is_asked_once_about_each_text(
    start_cluster: StartCluster, tokenizer: Tokenizer, redis_url: str, moderation: Any
) -> None:
    """Although what is kept and what is told are both judged."""
    url, service = moderation
    said = words("fine").replace("fine", "so", 1)
    cluster = await start_cluster(
        saying(ids_of(tokenizer, said)), safeguards=SafeguardsConfig(moderation_url=url), redis_url=redis_url
    )
    await events_of(cluster.front.inference.Chat(user("hello", session_id="s")))
    assert service.asked == ["hello", "so", "fine"]


async def test_answers_that_are_redacted_are_not_remembered(
    start_cluster: StartCluster, tokenizer: Tokenizer, redis_url: str, tmp_path: Path
) -> None:
    """The response cache keeps tokens as the model said them, so it has none where answers are redacted."""
    tenants = tmp_path / "tenants.toml"
    tenants.write_text('[default]\nredact = ["email"]\nresponse_cache = true\n')
    cluster = await start_cluster(
        saying(ids_of(tokenizer, words(f"write {MAIL}"))), redis_url=redis_url,
        limits=LimitsConfig(tenants_file=str(tenants)),
    )  # fmt: skip
    for _ in range(2):
        await events_of(cluster.front.inference.Chat(user("what", sampling=GREEDY)))
        await events_of(cluster.front.inference.Generate(api.GenerateRequest(text="what", sampling=GREEDY)))
    kept = await everything_in(cluster.front.router.redis.client, tokenizer)

    assert len(cluster.worker.submits) == 4
    assert not [key for key in kept if "answers" in key]


async def test_a_silent_classifier_holds_up_nobody_else(
    start_cluster: StartCluster, tokenizer: Tokenizer, moderation: Any, tmp_path: Path
) -> None:
    """While dozens of its callers wait for it, other tenants are served and recorded; its own are then told so."""
    url, service = moderation
    tenants, answers, post = tmp_path / "tenants.toml", threading.Event(), service.do_POST
    ring = Ring(tmp_path)
    (other, shown) = make_key("other", "user")
    write_keys(ring.file, *ring.keys.values(), other)

    def silent(handler: Any) -> None:
        answers.wait()
        post(handler)

    service.do_POST = silent
    tenants.write_text("[acme]\nmoderate = true\n[other]\nmoderate = false\n")
    cluster = await start_cluster(
        saying(ids_of(tokenizer, words("fine"))),
        access=ring.config(),
        audit=AuditConfig(directory=str(tmp_path / "t")),
        safeguards=SafeguardsConfig(moderation_url=url, moderation_seconds=60.0),
        limits=LimitsConfig(tenants_file=str(tenants)),
    )  # fmt: skip
    chat: Any = cluster.front.inference.Chat

    def asks(key: str) -> Any:
        return events_of(chat(user("hello"), metadata=(("authorization", f"Bearer {key}"),), timeout=60))

    waiting = [asyncio.create_task(asks(ring.shown["user"])) for _ in range(40)]
    await until(lambda: threading.active_count() > 40)
    told = await asks(shown)
    assert answer_of(told) == "fine"
    assert not any(task.done() for task in waiting)
    answers.set()

    assert {answer_of(events) for events in await asyncio.gather(*waiting)} == {"fine"}


async def test_a_classifier_that_takes_too_long_is_away(
    start_cluster: StartCluster, tokenizer: Tokenizer, moderation: Any
) -> None:
    """What it cannot judge in time is refused, with a hint to come back."""
    url, service = moderation
    answers, post = threading.Event(), service.do_POST
    service.do_POST = lambda handler: (answers.wait(), post(handler))
    cluster = await start_cluster(
        saying(ids_of(tokenizer, BOMB)),
        safeguards=SafeguardsConfig(moderation_url=url, moderation_seconds=0.05),
    )
    _, error = await failed(cluster.front.inference.Chat(user("hello")))
    answers.set()

    assert (error.code(), trailing(error)["shoal-reason"]) == (grpc.StatusCode.UNAVAILABLE, "moderation_away")
    assert int(trailing(error)[RETRY_AFTER_KEY]) > 0
