"""Generate through a real socket, a router and scripted workers."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator

import grpc
import grpc.aio
import pytest

from shoal.proto.v1 import inference_pb2 as api
from shoal.proto.v1 import worker_pb2 as pb
from shoal.router.fleet.pool import Member
from shoal.router.fleet.scripted_worker import Action, Break, Hang, Refuse, Say, ScriptedWorker, doing, saying
from shoal.router.tokenizer import Tokenizer
from tests.router.conftest import StartCluster
from tests.router.talking import events_of, failed, trailing, until


async def test_streams_tokens_with_whole_characters(start_cluster: StartCluster, tokenizer: Tokenizer) -> None:
    """Each token is an event of its own; text comes with the token that completes a character."""
    ids = tokenizer.encode("aé€")
    cluster = await start_cluster(saying(ids, step=4))
    events = await events_of(cluster.front.inference.Generate(api.GenerateRequest(text="x")))

    assert events[0].WhichOneof("event") == "started"
    assert [list(event.tokens.ids) for event in events[1:-1]] == [[token] for token in ids]
    assert [event.tokens.text for event in events[1:-1]] == ["a", "", "é", "", "", "€"]
    assert events[-1].done.finish_reason == api.FINISH_REASON_STOP


async def test_prompts_are_used_as_they_are(start_cluster: StartCluster, tokenizer: Tokenizer) -> None:
    """Text is encoded without control tokens, ids are passed on."""
    cluster = await start_cluster(saying([1]))
    await events_of(cluster.front.inference.Generate(api.GenerateRequest(text="a<|end|>")))
    await events_of(cluster.front.inference.Generate(api.GenerateRequest(tokens=api.TokenIds(ids=[5, 257, 6]))))
    prompts = [[list(part.ids) for part in submit.prompt] for submit in cluster.worker.submits]

    assert prompts == [[tokenizer.encode("a<|end|>")], [[5, 257, 6]]]


async def test_control_tokens_show_in_raw_text(start_cluster: StartCluster, tokenizer: Tokenizer) -> None:
    """Raw generation hides nothing."""
    cluster = await start_cluster(saying([tokenizer.control["<|end|>"]]))
    events = await events_of(cluster.front.inference.Generate(api.GenerateRequest(text="x")))

    assert "".join(event.tokens.text for event in events) == "<|end|>"


async def test_an_unfinished_character_ends_as_a_replacement(start_cluster: StartCluster, tokenizer: Tokenizer) -> None:
    """Output cut inside a character ends in U+FFFD, after the last token."""
    cluster = await start_cluster(saying(tokenizer.encode("€")[:2]))
    events = await events_of(cluster.front.inference.Generate(api.GenerateRequest(text="x")))

    assert [(len(event.tokens.ids), event.tokens.text) for event in events[1:-1]] == [(1, ""), (1, ""), (0, "�")]


async def test_a_stop_text_is_not_returned(start_cluster: StartCluster, tokenizer: Tokenizer) -> None:
    """Text ends before the stop text, whose ids are told; the worker knows the text as well."""
    ids = tokenizer.encode("one two three")
    cluster = await start_cluster(saying(ids))
    request = api.GenerateRequest(text="x", limits=api.Limits(stop=["two"]))
    events = await events_of(cluster.front.inference.Generate(request))

    assert "".join(event.tokens.text for event in events) == "one "
    assert events[-1].done.finish_reason == api.FINISH_REASON_STOP
    assert events[-1].done.usage.output_tokens == len(b"one two")
    assert list(cluster.worker.submits[0].limits.stop_bytes) == [b"two"]


async def test_a_held_back_beginning_of_a_stop_text_is_returned(
    start_cluster: StartCluster, tokenizer: Tokenizer
) -> None:
    """Text that only looked like a stop text comes at the end."""
    cluster = await start_cluster(saying(tokenizer.encode("one tw")))
    request = api.GenerateRequest(text="x", limits=api.Limits(stop=["two"]))
    events = await events_of(cluster.front.inference.Generate(request))

    assert "".join(event.tokens.text for event in events) == "one tw"


async def test_logprobs_come_with_their_tokens(start_cluster: StartCluster) -> None:
    """Each token has its own log-probability when asked for."""
    cluster = await start_cluster(doing(Say((1, 2), pb.SEQUENCE_FINISH_LENGTH, (-0.5, -1.5))))
    events = await events_of(cluster.front.inference.Generate(api.GenerateRequest(text="x", logprobs=True)))

    assert cluster.worker.submits[0].sampling.logprobs
    assert [list(event.tokens.logprobs) for event in events[1:-1]] == [[-0.5], [-1.5]]


async def test_a_seed_is_assigned_and_told(start_cluster: StartCluster) -> None:
    """The seed in force is in the first event and is what the worker uses, whether given or drawn."""
    cluster = await start_cluster(saying([1]))
    given = await events_of(
        cluster.front.inference.Generate(api.GenerateRequest(text="x", sampling=api.Sampling(seed=7)))
    )
    drawn = await events_of(cluster.front.inference.Generate(api.GenerateRequest(text="x")))

    assert given[0].started.seed == 7
    assert [submit.seed for submit in cluster.worker.submits] == [7, drawn[0].started.seed]


async def test_several_choices_of_one_prompt(start_cluster: StartCluster) -> None:
    """Each choice has its own ordered events and its own end; together they are one stream from one worker."""

    async def script(submit: pb.Submit) -> AsyncIterator[Action]:
        for token in range(3):
            yield Say((10 * submit.choice + token,))
            await asyncio.sleep(0.001)
        yield Say((99,), pb.SEQUENCE_FINISH_LENGTH)

    cluster = await start_cluster(script, script)
    request = api.GenerateRequest(text="x", n=3, sampling=api.Sampling(seed=7))
    events = await events_of(cluster.front.inference.Generate(request))
    submits = [worker.submits for worker in cluster.workers if worker.submits]

    assert [[(s.seed, s.choice) for s in told] for told in submits] == [[(7, 0), (7, 1), (7, 2)]]
    assert len({submit.request_id for submit in submits[0]}) == 1

    for choice in range(3):
        own = [event for event in events if event.choice == choice]
        assert own[0].started.seed == 7
        assert [event.tokens.ids[0] for event in own[1:-1]] == [10 * choice, 10 * choice + 1, 10 * choice + 2, 99]
        assert [event.cursor.offset for event in own] == [0, 1, 2, 3, 4, 4]
        assert own[-1].done.finish_reason == api.FINISH_REASON_LENGTH


async def test_one_choice_that_ends_early_leaves_the_others(start_cluster: StartCluster, tokenizer: Tokenizer) -> None:
    """A choice ended by its stop text does not end its siblings: the worker is told of it alone."""

    async def script(submit: pb.Submit) -> AsyncIterator[Action]:
        for token in tokenizer.encode("xx" if submit.choice else "ab stop"):
            yield Say((token,))
            await asyncio.sleep(0.005)
        if submit.choice == 0:
            yield Hang()
        await asyncio.sleep(0.05)
        yield Say(tuple(tokenizer.encode("!")), pb.SEQUENCE_FINISH_LENGTH)

    cluster = await start_cluster(script)
    request = api.GenerateRequest(text="x", n=2, limits=api.Limits(stop=["stop"]))
    events = await events_of(cluster.front.inference.Generate(request))
    texts = ["".join(event.tokens.text for event in events if event.choice == choice) for choice in range(2)]

    assert texts == ["ab ", "xx!"]
    await until(lambda: len(cluster.worker.cancels) == 1 and not cluster.worker.running)
    assert [0] == [cancel.choice for cancel in cluster.worker.cancels if cancel.HasField("choice")]


async def test_cancellation_reaches_the_worker(start_cluster: StartCluster) -> None:
    """A client that goes away frees the worker at once, of every choice."""
    cluster = await start_cluster(doing(Say((1,)), Hang()))
    call = cluster.front.inference.Generate(api.GenerateRequest(text="x", n=2))
    async for event in call:
        if event.HasField("tokens"):
            break
    call.cancel()
    await until(lambda: len(cluster.worker.cancels) > 0 and not cluster.worker.running)

    name = cluster.worker.submits[0].request_id
    assert {(name, 0), (name, 1)} == {(cancel.request_id, cancel.choice) for cancel in cluster.worker.cancels}
    await until(lambda: cluster.front.router.admission.running == 0)


async def test_a_deadline_reaches_the_worker(start_cluster: StartCluster) -> None:
    """The worker is told until when somebody waits, and is cancelled when that is over."""
    cluster = await start_cluster(doing(Say((1,)), Hang()))
    _, error = await failed(cluster.front.inference.Generate(api.GenerateRequest(text="x"), timeout=0.3))
    await until(lambda: len(cluster.worker.cancels) == 1)

    assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert 0 < cluster.worker.submits[0].deadline - time.time() + 5 < 5.3


async def test_a_worker_that_ends_at_the_deadline_is_late_not_done(start_cluster: StartCluster) -> None:
    """What a worker cut off because nobody waits any more is never told as a normal end."""
    cluster = await start_cluster(doing(Say((1,)), Say((2,), pb.SEQUENCE_FINISH_CANCELLED)))
    events, error = await failed(cluster.front.inference.Generate(api.GenerateRequest(text="x")))

    assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert events[-1].error.delivered_tokens == 2


async def test_a_request_has_a_longest_life(start_cluster: StartCluster) -> None:
    """Without a deadline of its own a request ends with the router's, as an event and as a status."""
    cluster = await start_cluster(doing(Say((1,)), Hang()), max_request_seconds=0.2)
    events, error = await failed(cluster.front.inference.Generate(api.GenerateRequest(text="x")))

    assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert events[-1].error.code == grpc.StatusCode.DEADLINE_EXCEEDED.value[0]
    await until(lambda: len(cluster.worker.cancels) == 1)


async def test_a_full_router_refuses_with_a_hint(start_cluster: StartCluster) -> None:
    """Beyond its bounds the router answers RESOURCE_EXHAUSTED at once and says when to come back."""
    cluster = await start_cluster(doing(Say((1,)), Hang()), max_running=1, max_waiting=1)
    running = cluster.front.inference.Generate(api.GenerateRequest(text="x"))
    waiting = cluster.front.inference.Generate(api.GenerateRequest(text="x"))
    await until(lambda: cluster.front.router.admission.running == 1 and cluster.front.router.admission.waiting == 1)
    _, error = await failed(cluster.front.inference.Generate(api.GenerateRequest(text="x")))
    running.cancel()
    waiting.cancel()

    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert trailing(error)["shoal-reason"] == "queue_full"
    assert int(trailing(error)["grpc-retry-pushback-ms"]) >= 100


REFUSALS = [
    (pb.REFUSAL_REASON_INVALID, grpc.StatusCode.INVALID_ARGUMENT, False),
    (pb.REFUSAL_REASON_OVERLOADED, grpc.StatusCode.RESOURCE_EXHAUSTED, True),
    (pb.REFUSAL_REASON_UNAVAILABLE, grpc.StatusCode.UNAVAILABLE, True),
    (pb.REFUSAL_REASON_INTERNAL, grpc.StatusCode.INTERNAL, False),
    (pb.REFUSAL_REASON_STALE_ATTEMPT, grpc.StatusCode.INTERNAL, False),
]


@pytest.mark.parametrize(("reason", "code", "retryable"), REFUSALS, ids=[str(row[1].name) for row in REFUSALS])
async def test_a_refusal_becomes_a_status(
    reason: pb.RefusalReason.ValueType, code: grpc.StatusCode, retryable: bool, start_cluster: StartCluster
) -> None:
    """Each typed refusal of a worker has its own status, before any event."""
    script = doing(Refuse(reason, "because", retry_after_ms=70))
    cluster = await start_cluster(script, worker_wait_seconds=0.3)
    events, error = await failed(cluster.front.inference.Generate(api.GenerateRequest(text="x")))

    assert events == []
    assert error.code() is code
    assert "because" in (error.details() or "")
    assert trailing(error)["shoal-retryable"] == str(retryable).lower()
    assert trailing(error).get("retry-after-ms") == ("70" if retryable else None)


async def test_a_failure_after_the_first_token_is_an_event_and_a_status(start_cluster: StartCluster) -> None:
    """What was generated was delivered; then comes the error with the number of tokens, then the same status."""
    cluster = await start_cluster(doing(Say((1, 2)), Refuse(pb.REFUSAL_REASON_INTERNAL, "broken")))
    events, error = await failed(cluster.front.inference.Generate(api.GenerateRequest(text="x")))

    assert error.code() is grpc.StatusCode.INTERNAL
    assert (events[-1].error.code, events[-1].error.delivered_tokens) == (13, 2)
    assert not events[-1].error.retryable


async def test_a_request_that_nobody_can_finish_ends_as_retryable(start_cluster: StartCluster) -> None:
    """When worker after worker dies under it the client hears how far it got, and that it may try again."""
    cluster = await start_cluster(doing(Say((1,)), Break()), doing(Break()), migration_losses=1)
    events, error = await failed(cluster.front.inference.Generate(api.GenerateRequest(text="x")))

    assert error.code() is grpc.StatusCode.UNAVAILABLE
    assert trailing(error)["shoal-reason"] == "migration_failed"
    assert events[-1].error.retryable
    assert events[-1].error.delivered_tokens == 1


async def test_other_bits_are_told_at_the_end(start_cluster: StartCluster) -> None:
    """After a migration to a worker of another numerics id `done` says that an undisturbed run might differ."""
    cluster = await start_cluster(doing(Say((1,)), Hang()))
    async with ScriptedWorker(saying([2]), numerics_id="another") as other:
        told = []
        async for event in cluster.front.inference.Generate(api.GenerateRequest(text="x")):
            told.append(event)
            if list(event.tokens.ids) == [1]:
                cluster.front.router.pool.set_members([Member(other.address)])
                cluster.worker.break_streams()  # nobody computes the same bits, so it would have gone on there

    assert [list(event.tokens.ids) for event in told if event.HasField("tokens")] == [[1], [2]]
    assert told[-1].done.numerics_changed


async def test_a_gap_is_a_fault(start_cluster: StartCluster) -> None:
    """A token that was skipped is never papered over: the request fails and the worker is told to stop."""
    cluster = await start_cluster(doing(Say((1,)), Say((2,), skip=1), Hang()))
    events, error = await failed(cluster.front.inference.Generate(api.GenerateRequest(text="x")))

    assert error.code() is grpc.StatusCode.INTERNAL
    assert "token 2 where 1 comes next" in (error.details() or "")
    assert [list(event.tokens.ids) for event in events if event.HasField("tokens")] == [[1]]
    await until(lambda: len(cluster.worker.cancels) == 1)


async def test_a_slow_reader_is_cut_off(start_cluster: StartCluster) -> None:
    """A client that does not read makes nobody wait: past the bound its request ends."""

    async def flood(submit: pb.Submit) -> AsyncIterator[Action]:
        while True:
            yield Say(tuple(range(256)))
            await asyncio.sleep(0)

    cluster = await start_cluster(flood, max_unread_tokens=2000)
    call = cluster.front.inference.Generate(api.GenerateRequest(text="x"))
    await until(lambda: len(cluster.worker.cancels) == 1)
    _, error = await failed(call)

    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert trailing(error)["shoal-reason"] == "slow_reader"


REGEX = api.RESPONSE_FORMAT_KIND_REGEX
BAD = [
    (api.GenerateRequest(), "prompt is missing"),
    (api.GenerateRequest(text=""), "prompt is empty"),
    (api.GenerateRequest(tokens=api.TokenIds()), "prompt is empty"),
    (api.GenerateRequest(tokens=api.TokenIds(ids=[512])), "tokens has id 512"),
    (api.GenerateRequest(text="x", n=17), "n is 17"),
    (api.GenerateRequest(text="x" * 4096), "4096 tokens, 1 too many"),
    (api.GenerateRequest(text="x", sampling=api.Sampling(top_p=2)), "sampling.top_p"),
    (api.GenerateRequest(text="x", limits=api.Limits(stop=[""])), "limits.stop"),
    (api.GenerateRequest(text="x", response_format=api.ResponseFormat(kind=REGEX, schema="(")), "response_format"),
    (
        api.GenerateRequest(
            text="x", limits=api.Limits(ignore_eos=True), response_format=api.ResponseFormat(kind=REGEX, schema="a")
        ),
        "limits.ignore_eos",
    ),
]


@pytest.mark.parametrize(("request_", "message"), BAD, ids=[row[1] for row in BAD])
async def test_bad_requests_name_what_is_wrong(
    request_: api.GenerateRequest, message: str, start_cluster: StartCluster
) -> None:
    """A request that cannot be served is INVALID_ARGUMENT with the field's name, and no worker sees it."""
    cluster = await start_cluster(saying([1]))
    _, error = await failed(cluster.front.inference.Generate(request_))

    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert message in (error.details() or "")
    assert cluster.worker.submits == []


async def test_another_model_is_not_found(start_cluster: StartCluster) -> None:
    """A request that names a model which is not served here is NOT_FOUND; the one that is served may be named."""
    cluster = await start_cluster(saying([1]), model_name="ours")
    _, error = await failed(cluster.front.inference.Generate(api.GenerateRequest(text="x", model="theirs")))
    events = await events_of(cluster.front.inference.Generate(api.GenerateRequest(text="x", model="ours")))

    assert error.code() is grpc.StatusCode.NOT_FOUND
    assert "'theirs'" in (error.details() or "")
    assert events[-1].WhichOneof("event") == "done"


async def test_raw_text_can_be_held_to_a_language(start_cluster: StartCluster) -> None:
    """The worker is told the language and the model's own end tokens; what cannot be enforced is warned of."""
    cluster = await start_cluster(saying([1]), welcome={"eos_token_ids": [256, 257]})
    schema = '{"type":"string","not":{"const":"x"}}'
    form = api.ResponseFormat(kind=api.RESPONSE_FORMAT_KIND_JSON_SCHEMA, schema=schema)
    events = await events_of(cluster.front.inference.Generate(api.GenerateRequest(text="x", response_format=form)))
    (state, end) = cluster.worker.submits[0].constraint.states

    assert [event.warning.code for event in events if event.HasField("warning")] == ["not_enforced"]
    assert json.loads(schema) == json.loads(state.grammar.source)
    assert [[256], [257]] == [[piece.id for piece in path.pieces] for path in state.paths]
    assert not end.paths
