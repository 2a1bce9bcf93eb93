"""A stream that broke goes on at any router, over real sockets and a real Redis."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any

import grpc
import pytest

from shoal.proto.v1 import inference_pb2 as api
from shoal.proto.v1 import worker_pb2 as pb
from shoal.router.fleet.scripted_worker import (
    STOPPED,
    Action,
    Refuse,
    Say,
    Script,
    ScriptedWorker,
    doing,
    saying,
)
from shoal.router.harmony.builtin import PYTHON
from shoal.router.tokenizer import Tokenizer
from shoal.router.tools.runner import ToolCall, ToolOutput
from shoal.router.tools.scripted import ScriptedTool
from tests.router.byte_tokenizer import ids_of
from tests.router.conftest import Front, StartCluster, StartRouter
from tests.router.talking import answer_of, events_of, failed, trailing, until, user

ANSWER = "<|channel|>analysis<|message|>hm<|end|><|start|>assistant<|channel|>final<|message|>4 é END<|return|>"
CALL = "<|channel|>analysis to=python code<|message|>6*7<|call|>"

Told = api.ChatResponse | api.GenerateResponse


def remembering(tokenizer: Tokenizer, *rounds: str, most: int = 1000) -> Script:
    """A model that says one text per round, from where it was told that it is; silent after `most` tokens at once."""

    async def script(submit: pb.Submit) -> AsyncIterator[Action]:
        _, _, number = submit.request_id.partition(".")[0].partition("-")
        ids = ids_of(tokenizer, rounds[int(number or 0)])
        for index in range(submit.start_offset, min(len(ids), submit.start_offset + most)):
            finish = STOPPED if index == len(ids) - 1 else pb.SEQUENCE_FINISH_UNSPECIFIED
            yield Say((ids[index],), finish, logprobs=(-0.5,), cached_tokens=submit.start_offset or 2)
        if submit.start_offset + most < len(ids):
            await asyncio.Event().wait()

    return script


async def resumed(front: Front, name: str, seen: Sequence[Told] = ()) -> list[Any]:
    """What a router tells behind the events that arrived, of the type that they had."""
    cursors = {event.choice: event.cursor for event in seen}
    request = api.ResumeRequest(request_id=name)
    request.seen.extend(api.SeenChoice(choice=choice, cursor=cursor) for choice, cursor in cursors.items())
    events = await events_of(front.inference.Resume(request))
    return [event.chat if event.HasField("chat") else event.generate for event in events]


def plain(events: Sequence[Any]) -> list[Any]:
    """Without what names this run."""
    kept = []
    for event in events:
        copy = type(event)()
        copy.CopyFrom(event)
        if copy.HasField("started"):
            copy.started.worker = copy.started.request_id = ""
        kept.append(copy)
    return kept


async def begun(stream: Any, count: int) -> list[Any]:
    """The first `count` events; then the client is gone."""
    seen = []
    async for event in stream:
        seen.append(event)
        if len(seen) == count:
            stream.cancel()
            return seen
    return seen


async def test_any_cut_of_a_turn_goes_on_at_another_router(
    start_cluster: StartCluster, start_router: StartRouter, tokenizer: Tokenizer, redis_url: str
) -> None:
    """Reasoning, a stop text over the cut, whole characters, the counts at the end: both parts are the whole."""
    first = await start_cluster(remembering(tokenizer, ANSWER), redis_url=redis_url)
    second = await start_router(workers=(first.worker.address,), redis_url=redis_url)
    asked: Any = {"sampling": api.Sampling(seed=3), "limits": api.Limits(stop=["END"]), "logprobs": True}
    whole = await events_of(first.front.inference.Chat(user("2+2?", request_id="whole", **asked)))
    assert whole[0].started.resumable
    assert answer_of(whole) == "4 é "
    for cut in range(1, len(whole)):
        name = f"cut-{cut}"
        seen = await begun(first.front.inference.Chat(user("2+2?", request_id=name, **asked)), cut)
        rest = await resumed(second, name, seen)
        assert plain(whole) == plain([*seen, *rest])


async def test_all_choices_go_on_from_their_own_places(
    start_cluster: StartCluster, start_router: StartRouter, tokenizer: Tokenizer, redis_url: str
) -> None:
    """Raw text with several choices, each cut where it was."""
    cluster = await start_cluster(remembering(tokenizer, "abcdefgh"), redis_url=redis_url)
    other = await start_router(workers=(cluster.worker.address,), redis_url=redis_url)
    request = api.GenerateRequest(text="x", n=3, request_id="three", logprobs=True, sampling=api.Sampling(seed=1))
    seen = await begun(cluster.front.inference.Generate(request), 11)
    rest = await resumed(other, "three", seen)

    for choice in range(3):
        told = [event for event in [*seen, *rest] if event.choice == choice]
        assert "".join(event.tokens.text for event in told) == "abcdefgh"
        assert [(e.cursor.offset, e.cursor.k) for e in told] == [(0, 0), *((n, 0) for n in range(1, 9)), (8, 1)]
        assert (told[0].started.seed, told[-1].done.usage.output_tokens) == (1, 8)


async def test_what_ended_is_told_again(
    start_cluster: StartCluster, start_router: StartRouter, tokenizer: Tokenizer, redis_url: str
) -> None:
    """From the journal alone: no worker hears of it, and the session has the turn once."""
    cluster = await start_cluster(remembering(tokenizer, ANSWER), redis_url=redis_url)
    other = await start_router(workers=(cluster.worker.address,), redis_url=redis_url)
    whole = await events_of(cluster.front.inference.Chat(user("2+2?", request_id="all", session_id="s")))
    await events_of(cluster.front.inference.Chat(user("And?", session_id="s")))
    submits = len(cluster.worker.submits)

    assert plain(whole) == plain(await resumed(other, "all"))
    assert len(cluster.worker.submits) == submits
    got = await other.sessions.GetSession(api.GetSessionRequest(session_id="s"))
    assert got.session.next_turn == 2


async def test_a_turn_that_goes_on_is_stored_once(
    start_cluster: StartCluster, start_router: StartRouter, tokenizer: Tokenizer, redis_url: str
) -> None:
    """The session gets the turn when it is whole, with everything that was said before the cut."""
    cluster = await start_cluster(remembering(tokenizer, ANSWER, most=14), redis_url=redis_url)
    other = await start_router(workers=(cluster.worker.address,), redis_url=redis_url)
    stream = cluster.front.inference.Chat(user("2+2?", request_id="q", session_id="s"))
    seen = await begun(stream, 2)
    cluster.worker.script = remembering(tokenizer, ANSWER)
    rest = await resumed(other, "q", seen)
    got = await other.sessions.GetSession(api.GetSessionRequest(session_id="s"))

    assert rest[-1].HasField("done")
    assert [item.message.content for item in got.items] == ["2+2?", "hm", "4 é END"]


async def test_a_turn_whose_session_was_deleted_does_not_go_on_in_another_of_its_name(
    start_cluster: StartCluster, start_router: StartRouter, tokenizer: Tokenizer, redis_url: str
) -> None:
    """Its client comes back after the session was deleted and begun anew, to the same turn: nothing enters that."""
    cluster = await start_cluster(remembering(tokenizer, ANSWER), redis_url=redis_url)
    other = await start_router(workers=(cluster.worker.address,), redis_url=redis_url)
    inference = cluster.front.inference
    await events_of(inference.Chat(user("old", session_id="s")))
    cluster.worker.script = remembering(tokenizer, ANSWER, most=14)
    seen = await begun(inference.Chat(user("2+2?", request_id="q", session_id="s")), 2)
    await until(lambda: cluster.front.router.admission.running == 0)
    cluster.worker.script = remembering(tokenizer, ANSWER)
    await cluster.front.sessions.DeleteSession(api.DeleteSessionRequest(session_id="s"))
    await events_of(inference.Chat(user("new", session_id="s")))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await resumed(other, "q", seen)
    got = await other.sessions.GetSession(api.GetSessionRequest(session_id="s"))

    assert caught.value.code() is grpc.StatusCode.ABORTED
    assert trailing(caught.value)["shoal-reason"] == "session_gone"
    assert [item.message.content for item in got.items if item.message.role == api.ROLE_USER] == ["new"]


async def test_who_resumes_takes_it_from_who_has_it(
    start_cluster: StartCluster, start_router: StartRouter, tokenizer: Tokenizer, redis_url: str
) -> None:
    """A stream that is still open elsewhere ends with ABORTED as soon as there would be something to tell."""
    going = asyncio.Event()

    async def script(submit: pb.Submit) -> AsyncIterator[Action]:
        yield Say((ord("a") + submit.start_offset,))
        if submit.start_offset:
            yield Say((ord("z"),), STOPPED)
            going.set()
            return
        await going.wait()
        for token in range(100):
            yield Say((token,))
            await asyncio.sleep(0.02)

    cluster = await start_cluster(script, redis_url=redis_url)
    other = await start_router(workers=(cluster.worker.address,), redis_url=redis_url)
    stream = cluster.front.inference.Generate(api.GenerateRequest(text="x", request_id="q"))
    seen: list[api.GenerateResponse] = []
    lost = asyncio.create_task(failed(_noting(stream, seen)))
    await until(lambda: len(seen) == 2)
    await asyncio.sleep(0.1)  # journaled
    rest = await resumed(other, "q", seen)
    _, error = await lost

    assert [list(event.tokens.ids) for event in rest[:-1]] == [[ord("b")], [ord("z")]]
    assert error.code() is grpc.StatusCode.ABORTED
    assert trailing(error)["shoal-reason"] == "taken_over"


async def _noting(stream: Any, seen: list[Any]) -> AsyncIterator[Any]:
    async for event in stream:
        seen.append(event)
        yield event


async def test_other_bits_are_told_at_the_end(
    start_cluster: StartCluster, start_router: StartRouter, tokenizer: Tokenizer, redis_url: str
) -> None:
    """Gone on with at a worker that computes other bits, `done` says so; also when it is told again."""
    cluster = await start_cluster(remembering(tokenizer, "abcdef", most=3), redis_url=redis_url)
    seen = await begun(cluster.front.inference.Generate(api.GenerateRequest(text="x", request_id="q")), 3)
    async with ScriptedWorker(remembering(tokenizer, "abcdef"), numerics_id="others") as worker:
        other = await start_router(workers=(worker.address,), redis_url=redis_url)
        rest = await resumed(other, "q", seen)
        again = await resumed(other, "q")

    assert "".join(event.tokens.text for event in [*seen, *rest]) == "abcdef"
    assert rest[-1].done.numerics_changed
    assert plain(again) == plain([*seen, *rest])


async def test_a_router_that_stops_leaves_its_streams_to_others(
    start_cluster: StartCluster, start_router: StartRouter, tokenizer: Tokenizer, redis_url: str
) -> None:
    """What does not end within its patience breaks off, and goes on elsewhere at once."""
    cluster = await start_cluster(remembering(tokenizer, "abcdef", most=3), redis_url=redis_url)
    other = await start_router(workers=(cluster.worker.address,), redis_url=redis_url)
    seen: list[api.GenerateResponse] = []
    stream = cluster.front.inference.Generate(api.GenerateRequest(text="x", request_id="q"))
    lost = asyncio.create_task(failed(_noting(stream, seen)))
    await until(lambda: len(seen) == 4)
    await cluster.front.router.stop(0.05)
    await lost
    cluster.worker.script = remembering(tokenizer, "abcdef")
    rest = await resumed(other, "q", seen)

    assert "".join(event.tokens.text for event in [*seen, *rest]) == "abcdef"
    assert rest[-1].HasField("done")


class Counting(ScriptedTool):
    """Counts its runs; the first one never ends when it `hangs`."""

    def __init__(self, hangs: bool) -> None:
        super().__init__(PYTHON, [ToolOutput("42")], channel="analysis", content_type="code")
        self.runs, self.hangs = 0, hangs

    async def run(self, call: ToolCall) -> ToolOutput:
        """See ToolRunner."""
        self.runs += 1
        if self.hangs:
            await asyncio.Event().wait()
        return ToolOutput("42")


@pytest.mark.parametrize("interrupted", [False, True], ids=["answered", "interrupted"])
async def test_a_tool_is_not_run_again(
    interrupted: bool, start_cluster: StartCluster, start_router: StartRouter, tokenizer: Tokenizer, redis_url: str
) -> None:
    """Its result was journaled before it was used; a call that was cut off may have taken effect, and has failed."""
    tool = Counting(interrupted)
    script = remembering(tokenizer, CALL, ANSWER)
    cluster = await start_cluster(script, redis_url=redis_url, tools=[tool])
    other = await start_router(workers=(cluster.worker.address,), redis_url=redis_url, tools=[tool])
    stream = cluster.front.inference.Chat(user("6*7?", request_id="q", server_tools=["python"]))
    seen: list[Any] = []
    listening = asyncio.create_task(failed(_noting(stream, seen)))
    await until(lambda: tool.runs == 1 if interrupted else any(event.HasField("tool_result") for event in seen))
    stream.cancel()
    await asyncio.gather(listening, return_exceptions=True)
    tool.hangs = False
    rest = await resumed(other, "q", seen)
    results = [event.tool_result for event in [*seen, *rest] if event.HasField("tool_result")]

    assert tool.runs == 1
    assert [result.failed for result in results] == [interrupted]
    assert ("interrupted" in results[0].content) is interrupted
    assert answer_of([*seen, *rest]) == "4 é END"


@pytest.mark.parametrize("name", ["nobody", ""])
async def test_what_does_not_exist(name: str, start_cluster: StartCluster, redis_url: str) -> None:
    """An unknown request cannot be resumed, and one without a name is no request."""
    cluster = await start_cluster(saying([1]), redis_url=redis_url)
    _, error = await failed(cluster.front.inference.Resume(api.ResumeRequest(request_id=name)))

    assert error.code() is (grpc.StatusCode.NOT_FOUND if name else grpc.StatusCode.INVALID_ARGUMENT)


async def test_without_redis_nothing_can_be_resumed(start_cluster: StartCluster) -> None:
    """Requests run, and say so."""
    cluster = await start_cluster(saying([1]))
    events = await events_of(cluster.front.inference.Generate(api.GenerateRequest(text="x", request_id="q")))
    _, error = await failed(cluster.front.inference.Resume(api.ResumeRequest(request_id="q")))

    assert not events[0].started.resumable
    assert error.code() is grpc.StatusCode.NOT_FOUND


async def test_a_failure_for_good_stays_one(start_cluster: StartCluster, redis_url: str) -> None:
    """After the tokens that were told it ends as it ended."""
    dead_end = Refuse(pb.REFUSAL_REASON_INVALID, "no token may follow")
    cluster = await start_cluster(doing(Say((1,)), dead_end), redis_url=redis_url)
    _, before = await failed(cluster.front.inference.Generate(api.GenerateRequest(text="x", request_id="q")))
    events, after = await failed(cluster.front.inference.Resume(api.ResumeRequest(request_id="q")))

    assert (before.code(), before.details()) == (after.code(), after.details())
    assert [list(event.generate.tokens.ids) for event in events[1:-1]] == [[1]]
    assert events[-1].generate.error.delivered_tokens == 1


async def test_what_was_refused_is_no_request(start_cluster: StartCluster, redis_url: str) -> None:
    """A client that was sent away is not remembered: it asks anew."""
    cluster = await start_cluster(doing(Refuse(pb.REFUSAL_REASON_OVERLOADED, "full")), redis_url=redis_url)
    await failed(cluster.front.inference.Generate(api.GenerateRequest(text="x", request_id="q")))
    _, error = await failed(cluster.front.inference.Resume(api.ResumeRequest(request_id="q")))

    assert error.code() is grpc.StatusCode.NOT_FOUND
