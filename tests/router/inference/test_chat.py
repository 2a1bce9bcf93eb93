"""Chat through a real socket, a router, a scripted worker and a real Redis."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest

from shoal.cluster.embedded_redis import EmbeddedRedis
from shoal.proto.v1 import inference_pb2 as api
from shoal.proto.v1 import worker_pb2 as pb
from shoal.router.fleet.scripted_worker import Action, Hang, Say, Script, ScriptedWorker, saying
from shoal.router.tokenizer import Tokenizer
from tests.router.byte_tokenizer import ids_of
from tests.router.conftest import StartCluster, StartRouter
from tests.router.talking import answer_of, events_of, failed, kinds_of, trailing, until, user

ANSWER = "<|channel|>analysis<|message|>hm<|end|><|start|>assistant<|channel|>final<|message|>4 é<|return|>"


@pytest.fixture
def answering(tokenizer: Tokenizer) -> Script:
    """A worker that thinks "hm" and answers "4 é"."""
    return saying(ids_of(tokenizer, ANSWER))


def prompt_of(worker: ScriptedWorker, tokenizer: Tokenizer, submit: int = -1) -> str:
    """What the worker was given to read."""
    return tokenizer.decode([token for part in worker.submits[submit].prompt for token in part.ids])


async def test_streams_reasoning_then_answer(start_cluster: StartCluster, answering: Script) -> None:
    """A turn is told as started, reasoning, text and done, in this order."""
    cluster = await start_cluster(answering)
    events = await events_of(cluster.front.inference.Chat(user("2+2?")))

    assert kinds_of(events) == ["started", "reasoning", "text", "done"]
    assert "".join(event.reasoning.text for event in events) == "hm"
    assert answer_of(events) == "4 é"
    assert events[-1].done.finish_reason == api.FINISH_REASON_STOP


async def test_counts_tokens_by_channel(start_cluster: StartCluster, answering: Script, tokenizer: Tokenizer) -> None:
    """Usage has the rendered prompt, everything generated, and the reasoning among it."""
    cluster = await start_cluster(answering)
    events = await events_of(cluster.front.inference.Chat(user("2+2?")))
    usage = events[-1].done.usage

    assert usage.input_tokens == sum(len(part.ids) for part in cluster.worker.submits[0].prompt)
    assert usage.output_tokens == len(ids_of(tokenizer, ANSWER))
    assert usage.reasoning_tokens == len("hm")


async def test_prompt_begins_with_the_system_message(
    start_cluster: StartCluster, answering: Script, tokenizer: Tokenizer
) -> None:
    """The model reads identity, date, effort and channels, then what was said, then its own beginning."""
    cluster = await start_cluster(answering)
    await events_of(cluster.front.inference.Chat(user("2+2?", reasoning_effort=api.REASONING_EFFORT_HIGH)))
    prompt = prompt_of(cluster.worker, tokenizer)

    assert prompt.startswith("<|start|>system<|message|>You are ChatGPT")
    assert "Current date: 2" in prompt
    assert "Reasoning: high\n" in prompt
    assert prompt.endswith("<|start|>user<|message|>2+2?<|end|><|start|>assistant")


async def test_a_system_message_sets_the_identity(
    start_cluster: StartCluster, answering: Script, tokenizer: Tokenizer
) -> None:
    """A system message replaces who the model is, and nothing else of what the system message says."""
    cluster = await start_cluster(answering)
    request = user("2+2?")
    request.messages.insert(0, api.Message(role=api.ROLE_SYSTEM, content="You are a fish."))
    await events_of(cluster.front.inference.Chat(request))
    prompt = prompt_of(cluster.worker, tokenizer)

    assert prompt.startswith("<|start|>system<|message|>You are a fish.\nKnowledge cutoff: ")
    assert prompt.count("<|start|>system") == 1


@pytest.mark.parametrize("step", [1, 2, 7, 1000])
async def test_events_do_not_depend_on_the_engines_steps(
    step: int, start_cluster: StartCluster, tokenizer: Tokenizer
) -> None:
    """Cursors and contents are the same however many tokens a step brings."""
    cluster = await start_cluster(saying(ids_of(tokenizer, ANSWER)), saying(ids_of(tokenizer, ANSWER), step=step))
    told = []
    for _ in range(2):
        events = await events_of(cluster.front.inference.Chat(user("x", sampling=api.Sampling(seed=1))))
        told.append([(e.cursor.offset, e.cursor.k, e.reasoning.text, e.text.text) for e in events])

    assert {len(worker.submits) for worker in cluster.workers} == {1}
    assert told[0] == told[1]
    assert len({cursor[:2] for cursor in told[0]}) == len(told[0])


async def test_a_stop_text_ends_the_answer_but_not_the_reasoning(
    start_cluster: StartCluster, tokenizer: Tokenizer, redis_url: str
) -> None:
    """Stop texts are looked for in what the user sees; nothing from there on is shown or kept, the worker is told."""
    ids = ids_of(
        tokenizer, "<|channel|>analysis<|message|>STOP<|end|><|start|>assistant<|channel|>final<|message|>aSTOPb"
    )

    async def script(submit: pb.Submit) -> AsyncIterator[Action]:
        for token in ids:
            yield Say((token,))
        yield Hang()

    cluster = await start_cluster(script, redis_url=redis_url)
    request = user("x", session_id="s", limits=api.Limits(stop=["STOP"]))
    events = await events_of(cluster.front.inference.Chat(request))
    stored = await cluster.front.sessions.GetSession(api.GetSessionRequest(session_id="s"))

    assert "".join(event.reasoning.text for event in events) == "STOP"
    assert answer_of(events) == "a"
    assert events[-1].done.finish_reason == api.FINISH_REASON_STOP
    assert stored.items[-1].message.content == "a"
    await until(lambda: len(cluster.worker.cancels) == 1)


async def test_a_tool_call_is_told_in_pieces(start_cluster: StartCluster, tokenizer: Tokenizer) -> None:
    """A call begins with its name; its arguments follow; the turn ends for the call."""
    written = "<|channel|>commentary to=functions.sum <|constrain|>json<|message|>{}<|call|>"
    cluster = await start_cluster(saying(ids_of(tokenizer, written)))
    events = await events_of(cluster.front.inference.Chat(user("x")))
    calls = [event.tool_call for event in events if event.HasField("tool_call")]

    assert [call.name for call in calls] == ["sum", "", ""]
    assert "".join(call.arguments for call in calls) == "{}"
    assert events[-1].done.finish_reason == api.FINISH_REASON_TOOL_CALL


async def test_a_malformed_header_is_a_warning(start_cluster: StartCluster, tokenizer: Tokenizer) -> None:
    """What the model got wrong is repaired, told, and does not end the turn."""
    cluster = await start_cluster(saying(ids_of(tokenizer, "Four.<|return|>")))
    events = await events_of(cluster.front.inference.Chat(user("x")))

    assert [event.warning.code for event in events if event.HasField("warning")] == ["missing_header"]
    assert answer_of(events) == "Four."


async def test_max_tokens_ends_with_length(start_cluster: StartCluster, answering: Script) -> None:
    """A turn cut by its limit says so and has as many tokens."""
    cluster = await start_cluster(answering)
    events = await events_of(cluster.front.inference.Chat(user("x", limits=api.Limits(max_tokens=5))))

    assert events[-1].done.finish_reason == api.FINISH_REASON_LENGTH
    assert events[-1].done.usage.output_tokens == 5


async def test_remembers_a_session(
    start_cluster: StartCluster, answering: Script, tokenizer: Tokenizer, redis_url: str
) -> None:
    """The second turn reads the first one's question and answer with the very same ids, without its reasoning."""
    cluster = await start_cluster(answering, redis_url=redis_url)
    for turn, text in enumerate(("2+2?", "and 3+3?")):
        events = await events_of(cluster.front.inference.Chat(user(text, session_id="s")))
        assert events[0].started.turn == turn

    prompt = prompt_of(cluster.worker, tokenizer)
    assert prompt.endswith(
        "<|start|>user<|message|>2+2?<|end|><|start|>assistant<|channel|>final<|message|>4 é<|end|>"
        "<|start|>user<|message|>and 3+3?<|end|><|start|>assistant"
    )
    assert "hm" not in prompt
    stored = await cluster.front.sessions.GetSession(api.GetSessionRequest(session_id="s"))
    rendered = tokenizer.decode([t for item in stored.items[:1] + stored.items[2:4] for t in item.token_ids])
    assert prompt.endswith(rendered + "<|start|>assistant")
    assert stored.session.next_turn == 2


async def test_history_that_the_model_wrote_is_marked(
    start_cluster: StartCluster, answering: Script, tokenizer: Tokenizer, redis_url: str
) -> None:
    """A worker is told which tokens were generated, and where a later prompt may go on: after system and answers."""
    cluster = await start_cluster(answering, redis_url=redis_url)
    for text in ("a", "b"):
        await events_of(cluster.front.inference.Chat(user(text, session_id="s")))
    parts = cluster.worker.submits[1].prompt

    given, generated = pb.TOKEN_ROLE_GIVEN, pb.TOKEN_ROLE_GENERATED
    assert [part.role for part in parts] == [given, given, generated, given]
    assert tokenizer.decode(parts[0].ids).endswith("for every message.<|end|>")
    assert tokenizer.decode(parts[2].ids) == "<|start|>assistant<|channel|>final<|message|>4 é<|end|>"


async def test_two_writers_of_one_turn(start_cluster: StartCluster, tokenizer: Tokenizer, redis_url: str) -> None:
    """Of two turns at once on one session one runs; the other is ABORTED before anything is generated, with a hint."""
    go_on = asyncio.Event()

    async def slowly(submit: pb.Submit) -> AsyncIterator[Action]:
        yield Say(tuple(ids_of(tokenizer, ANSWER))[:1])
        await go_on.wait()
        yield Say(tuple(ids_of(tokenizer, ANSWER))[1:], pb.SEQUENCE_FINISH_STOP_TOKEN)

    cluster = await start_cluster(slowly, redis_url=redis_url)
    first = asyncio.create_task(events_of(cluster.front.inference.Chat(user("a", session_id="s"))))
    await until(lambda: len(cluster.worker.submits) == 1)
    events, error = await failed(cluster.front.inference.Chat(user("b", session_id="s")))
    go_on.set()
    await first
    stored = await cluster.front.sessions.GetSession(api.GetSessionRequest(session_id="s"))

    assert events == []
    assert error.code() is grpc.StatusCode.ABORTED
    assert trailing(error)["shoal-reason"] == "turn_reserved"
    assert int(trailing(error)["retry-after-ms"]) > 0
    assert len(cluster.worker.submits) == 1
    assert [item.message.content for item in stored.items] == ["a", "hm", "4 é"]


async def test_a_turn_that_failed_lets_the_next_one_begin(
    start_cluster: StartCluster, answering: Script, redis_url: str
) -> None:
    """A turn that was refused, or whose client went away, does not hold the session."""
    cluster = await start_cluster(answering, redis_url=redis_url)
    await failed(cluster.front.inference.Chat(user("a", session_id="s", limits=api.Limits(max_tokens=0))))
    call = cluster.front.inference.Chat(user("a", session_id="s"))
    async for event in call:
        if event.HasField("started"):
            call.cancel()
            break
    await until(lambda: cluster.front.router.admission.running == 0)
    events = await events_of(cluster.front.inference.Chat(user("a", session_id="s")))

    assert events[0].started.turn == 0
    assert events[0].started.resumable


async def test_a_full_session_is_refused_before_it_grows(
    start_cluster: StartCluster, answering: Script, redis_url: str
) -> None:
    """A session of as many bytes as may be kept takes no more words: RESOURCE_EXHAUSTED, and trying again is no use."""
    cluster = await start_cluster(answering, redis_url=redis_url, max_session_bytes=2000)
    await events_of(cluster.front.inference.Chat(user("a", session_id="s")))
    _, error = await failed(cluster.front.inference.Chat(user("b" * 1900, session_id="s")))

    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert trailing(error)["shoal-reason"] == "session_full"
    assert trailing(error)["shoal-retryable"] == "false"
    assert (await events_of(cluster.front.inference.Chat(user("c", session_id="s"))))[0].started.turn == 1


async def test_an_expected_turn_that_passed_is_refused_at_once(
    start_cluster: StartCluster, answering: Script, redis_url: str
) -> None:
    """A caller with an old view learns it before anything is generated."""
    cluster = await start_cluster(answering, redis_url=redis_url)
    await events_of(cluster.front.inference.Chat(user("a", session_id="s", expected_turn=0)))
    events, error = await failed(cluster.front.inference.Chat(user("b", session_id="s", expected_turn=0)))

    assert events == []
    assert error.code() is grpc.StatusCode.ABORTED
    assert trailing(error)["shoal-reason"] == "turn_conflict"
    assert len(cluster.worker.submits) == 1


async def test_without_redis_only_sessions_are_refused(start_cluster: StartCluster, answering: Script) -> None:
    """With Redis away a stateless request is served, a session is UNAVAILABLE with a hint when to come back."""
    cluster = await start_cluster(answering, redis_url="unix:///nowhere/redis.sock")
    events = await events_of(cluster.front.inference.Chat(user("a")))
    _, error = await failed(cluster.front.inference.Chat(user("a", session_id="s")))

    assert answer_of(events) == "4 é"
    assert error.code() is grpc.StatusCode.UNAVAILABLE
    assert int(trailing(error)["retry-after-ms"]) > 0


async def test_done_is_told_only_after_the_turn_was_stored(
    start_cluster: StartCluster, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    """When the turn cannot be stored the client gets an error event and the same status, never done."""
    with EmbeddedRedis(tmp_path / "redis") as redis:

        async def stop_redis_first(submit: pb.Submit) -> AsyncIterator[Action]:
            yield Say(tuple(ids_of(tokenizer, ANSWER))[:-1])
            await asyncio.to_thread(redis.stop)
            yield Say(tuple(ids_of(tokenizer, ANSWER))[-1:], pb.SEQUENCE_FINISH_STOP_TOKEN)

        cluster = await start_cluster(stop_redis_first, redis_url=redis.url, session_patience_seconds=0.3)
        events, error = await failed(cluster.front.inference.Chat(user("a", session_id="s")))

    assert error.code() is grpc.StatusCode.UNAVAILABLE
    assert kinds_of(events) == ["started", "reasoning", "text", "error"]
    assert events[-1].error.code == grpc.StatusCode.UNAVAILABLE.value[0]
    assert events[-1].error.retryable
    assert events[-1].error.delivered_tokens == len(ids_of(tokenizer, ANSWER)) - 1


async def test_sixteen_clients_at_once(start_cluster: StartCluster, tokenizer: Tokenizer, redis_url: str) -> None:
    """Every client gets its own answer, and two workers share them."""
    arrived: list[str] = []

    async def echo(submit: pb.Submit) -> AsyncIterator[Action]:
        prompt = tokenizer.decode([token for part in submit.prompt for token in part.ids])
        question = prompt.split("<|start|>user<|message|>")[-1].split("<|end|>")[0]
        ids = ids_of(tokenizer, f"<|channel|>final<|message|>{question}!<|return|>")
        arrived.append(question)
        await until(lambda: len(arrived) == 16)
        for token in ids[:-1]:
            yield Say((token,))
            await asyncio.sleep(0.001)
        yield Say((ids[-1],), pb.SEQUENCE_FINISH_STOP_TOKEN)

    cluster = await start_cluster(echo, echo, redis_url=redis_url)
    calls = [events_of(cluster.front.inference.Chat(user(f"n{i}", session_id=f"s{i}"))) for i in range(16)]
    answers = [answer_of(events) for events in await asyncio.gather(*calls)]

    assert answers == [f"n{i}!" for i in range(16)]
    assert [len(worker.submits) for worker in cluster.workers] == [8, 8]


BAD = [
    (api.ChatRequest(), "messages is empty"),
    (api.ChatRequest(messages=[api.Message(content="x")]), "messages[0].role"),
    (api.ChatRequest(messages=[api.Message(role=99, content="x")]), "messages[0].role"),  # type: ignore[arg-type]  # wrong on purpose
    (user(""), "messages[0].content is empty"),
    (user("x", sampling=api.Sampling(temperature=-1)), "sampling.temperature"),
    (user("x", reasoning_effort=9), "reasoning_effort"),
    (user("x", session_id="a\nb"), "session_id"),
    (user("x", expected_turn=0), "expected_turn has no meaning without session_id"),
    (user("x", session_id="s", session_ttl_seconds=0), "session_ttl_seconds"),
    (user("x" * 5000), "the prompt has"),
    (api.ChatRequest(messages=[api.Message(role=api.ROLE_TOOL, content="x")]), "messages[0].name"),
    (api.ChatRequest(messages=[api.Message(role=api.ROLE_USER, content="x", channel="final")]), "messages[0].channel"),
    (api.ChatRequest(messages=[api.Message(role=api.ROLE_ASSISTANT, content="x", channel="x")]), "messages[0].channel"),
    (api.ChatRequest(messages=[api.Message(role=api.ROLE_ASSISTANT, recipient="a b")]), "messages[0].recipient"),
    (user("x", request_id="x" * 300), "request_id"),
]


@pytest.mark.parametrize(("request_", "message"), BAD, ids=[row[1] for row in BAD])
async def test_bad_requests_name_what_is_wrong(
    request_: api.ChatRequest, message: str, start_cluster: StartCluster, answering: Script, redis_url: str
) -> None:
    """A request that cannot be served is INVALID_ARGUMENT with the field's name, and no worker sees it."""
    cluster = await start_cluster(answering, redis_url=redis_url)
    events, error = await failed(cluster.front.inference.Chat(request_))

    assert events == []
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert message in (error.details() or "")
    assert cluster.worker.submits == []


async def test_a_router_without_redis_says_so(start_cluster: StartCluster, answering: Script) -> None:
    """Where no Redis was configured, a session is refused with what to do instead."""
    cluster = await start_cluster(answering)
    _, error = await failed(cluster.front.inference.Chat(user("x", session_id="s")))

    assert error.code() is grpc.StatusCode.UNAVAILABLE
    assert "leave session_id empty" in (error.details() or "")


async def test_no_worker_is_told_with_a_hint(start_router: StartRouter) -> None:
    """A router without workers answers UNAVAILABLE after the wait it was given."""
    front = await start_router(worker_wait_seconds=0.05)
    _, error = await failed(front.inference.Chat(user("x")))

    assert error.code() is grpc.StatusCode.UNAVAILABLE
    assert trailing(error)["shoal-reason"] == "no_worker"
    assert "grpc-retry-pushback-ms" in trailing(error)
