"""Tools, formats, choices and log-probabilities through a real socket, a router and a scripted worker."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator

import grpc
import pytest
from google.rpc import error_details_pb2

from shoal.proto.v1 import inference_pb2 as api
from shoal.proto.v1 import worker_pb2 as pb
from shoal.router.fleet.scripted_worker import STOPPED, Action, Say, Script, ScriptedWorker, saying
from shoal.router.harmony.builtin import BROWSER, PYTHON
from shoal.router.limits.config import LimitsConfig
from shoal.router.tokenizer import Tokenizer
from shoal.router.tools.runner import ToolOutput
from shoal.router.tools.scripted import ScriptedTool
from shoal.wire.details import read_details
from tests.router.byte_tokenizer import ids_of
from tests.router.conftest import StartCluster, StartRouter
from tests.router.talking import answer_of, events_of, failed, kinds_of, trailing, user

LOOKUP = api.Tool(
    name="lookup",
    description="Looks up.",
    parameters='{"type":"object","properties":{"q":{"type":"string"}},"required":["q"]}',
)
CALL = (
    "<|channel|>analysis<|message|>look<|end|>"
    '<|start|>assistant<|channel|>commentary to=functions.lookup <|constrain|>json<|message|>{"q":"é"}<|call|>'
)
ANSWER = "<|channel|>final<|message|>4<|return|>"


def taking_turns(tokenizer: Tokenizer, *turns: str) -> Script:
    """Says one text per submit, the last for ever."""
    said = iter(turns)
    last = turns[-1]

    async def script(submit: pb.Submit) -> AsyncIterator[Action]:
        async for action in saying(ids_of(tokenizer, next(said, last)))(submit):
            yield action

    return script


def prompt_of(worker: ScriptedWorker, tokenizer: Tokenizer, submit: int = -1) -> str:
    """What the worker was given to read."""
    return tokenizer.decode([token for part in worker.submits[submit].prompt for token in part.ids])


def calls_in(events: list[api.ChatResponse]) -> list[api.ToolCallDelta]:
    """The calls, their arguments joined."""
    calls: list[api.ToolCallDelta] = []
    for event in events:
        if event.WhichOneof("event") != "tool_call":
            continue
        if event.tool_call.id:
            calls.append(api.ToolCallDelta())
            calls[-1].CopyFrom(event.tool_call)
        else:
            calls[-1].arguments += event.tool_call.arguments
    return calls


async def test_a_call_ends_the_turn(start_cluster: StartCluster, tokenizer: Tokenizer) -> None:
    """The model is told of the functions, its call comes as pieces, and the turn ends with TOOL_CALL."""
    cluster = await start_cluster(saying(ids_of(tokenizer, CALL)))
    events = await events_of(cluster.front.inference.Chat(user("?", tools=[LOOKUP])))
    prompt = prompt_of(cluster.worker, tokenizer)

    assert "Calls to these tools must go to the commentary channel: 'functions'.<|end|>" in prompt
    assert "type lookup = (_: {\nq: string,\n}) => any;" in prompt
    assert kinds_of(events) == ["started", "reasoning", "tool_call", "done"]
    (call,) = calls_in(events)
    assert (call.name, call.recipient, call.arguments) == ("lookup", "functions.lookup", '{"q":"é"}')
    assert not call.runs_on_server
    assert events[-1].done.finish_reason == api.FINISH_REASON_TOOL_CALL
    usage = events[-1].done.usage
    assert (usage.reasoning_tokens, usage.tool_call_tokens, usage.answer_tokens) == (4, len('{"q":"é"}') + 1, 0)


async def test_results_follow_their_call(start_cluster: StartCluster, tokenizer: Tokenizer) -> None:
    """A caller that keeps the conversation gives call and result back; the result needs the call's name alone."""
    cluster = await start_cluster(saying(ids_of(tokenizer, ANSWER)))
    request = user("?", tools=[LOOKUP])
    request.messages.add(role=api.ROLE_ASSISTANT, content="look", channel="analysis")
    request.messages.add(role=api.ROLE_ASSISTANT, content="{}", recipient="functions.lookup", call_id="c1")
    request.messages.add(role=api.ROLE_TOOL, content="42", call_id="c1")
    events = await events_of(cluster.front.inference.Chat(request))

    assert answer_of(events) == "4"
    assert prompt_of(cluster.worker, tokenizer).endswith(
        "<|start|>assistant<|channel|>analysis<|message|>look<|end|>"
        "<|start|>assistant to=functions.lookup<|channel|>commentary <|constrain|>json<|message|>{}<|call|>"
        "<|start|>functions.lookup to=assistant<|channel|>commentary<|message|>42<|end|><|start|>assistant"
    )


async def test_a_session_goes_on_after_a_call(
    start_cluster: StartCluster, tokenizer: Tokenizer, redis_url: str
) -> None:
    """The next prompt begins with exactly the tokens read and generated before, the call's end included; functions
    stay in force without being sent again."""
    cluster = await start_cluster(taking_turns(tokenizer, CALL, ANSWER), redis_url=redis_url)
    first = await events_of(cluster.front.inference.Chat(user("?", session_id="s", tools=[LOOKUP])))
    result = api.Message(role=api.ROLE_TOOL, content="42", call_id=calls_in(first)[0].id)
    await events_of(cluster.front.inference.Chat(api.ChatRequest(session_id="s", messages=[result])))
    before = prompt_of(cluster.worker, tokenizer, 0) + CALL

    assert prompt_of(cluster.worker, tokenizer, 1).startswith(before)
    assert cluster.worker.submits[1].HasField("constraint")
    stored = await cluster.front.sessions.GetSession(api.GetSessionRequest(session_id="s"))
    assert [item.message.call_id for item in stored.items] == ["", "", result.call_id, result.call_id, ""]


async def test_headers_are_kept_well_formed(start_cluster: StartCluster, tokenizer: Tokenizer) -> None:
    """Of every turn, unless the router is told not to, or the request goes on past the ends of turns."""
    formed = await start_cluster(saying(ids_of(tokenizer, ANSWER)))
    loose = await start_cluster(saying(ids_of(tokenizer, ANSWER)), well_formed=False)
    for cluster in (formed, loose):
        await events_of(cluster.front.inference.Chat(user("?")))
        await events_of(cluster.front.inference.Chat(user("?", limits=api.Limits(ignore_eos=True))))

    assert [submit.HasField("constraint") for submit in formed.worker.submits] == [True, False]
    assert [submit.HasField("constraint") for submit in loose.worker.submits] == [False, False]
    states = formed.worker.submits[0].constraint.states
    assert not any(state.HasField("grammar") for state in states), "free text is held to no language"


async def test_formats_and_tools_together(start_cluster: StartCluster, tokenizer: Tokenizer) -> None:
    """A schema for the answer, one per tool and a budget for reasoning are told and enforced in the same turn."""
    cluster = await start_cluster(saying(ids_of(tokenizer, ANSWER)))
    schema = '{"type":"integer"}'
    form = api.ResponseFormat(kind=api.RESPONSE_FORMAT_KIND_JSON_SCHEMA, schema=schema, name="number")
    request = user("?", tools=[LOOKUP], response_format=form, reasoning_budget=7)
    await events_of(cluster.front.inference.Chat(request))

    assert '# Response Formats\n\n## number\n\n{"type":"integer"}<|end|>' in prompt_of(cluster.worker, tokenizer)
    constraint = cluster.worker.submits[0].constraint
    sources = [json.loads(state.grammar.source) for state in constraint.states if state.HasField("grammar")]
    assert json.loads(schema) in sources
    assert json.loads(LOOKUP.parameters) in sources
    assert [budget.tokens for budget in constraint.budgets] == [7]


BAD = [
    (user("?", tools=[api.Tool(name="f", parameters='{"properties":{"a":{"type":"strin"}}}')]), "tools[0].parameters"),
    (user("?", tools=[LOOKUP, LOOKUP]), "tools[1]"),
    (user("?", tool_choice=api.ToolChoice(mode=api.TOOL_CHOICE_MODE_REQUIRED)), "tool_choice"),
    (user("?", server_tools=["python"]), "server_tools[0]"),
    (user("?", n=99), "n"),
    (user("?", n=2, session_id="s"), "n"),
    (user("?", top_logprobs=2), "top_logprobs"),
    (user("?", logprobs=True, top_logprobs=21), "top_logprobs"),
    (user("?", sampling=api.Sampling(temperature=-1)), "sampling.temperature"),
    (api.ChatRequest(), "messages"),
    (api.ChatRequest(messages=[api.Message(role=9, content="?")]), "messages[0].role"),  # type: ignore[arg-type]  # a newer client's
    (api.ChatRequest(messages=[api.Message(role=api.ROLE_TOOL, call_id="c")]), "messages[0].call_id"),
    (api.ChatRequest(messages=[api.Message(role=api.ROLE_USER, content="?", call_id="c")]), "messages[0].call_id"),
    (
        user("?", response_format=api.ResponseFormat(kind=api.RESPONSE_FORMAT_KIND_REGEX, schema="(")),
        "response_format.schema",
    ),
    (user("x" * 5000), "prompt"),
]


@pytest.mark.parametrize(("request_", "field"), BAD, ids=[field for _, field in BAD])
async def test_what_is_wrong_is_named(
    request_: api.ChatRequest, field: str, start_cluster: StartCluster, tokenizer: Tokenizer, redis_url: str
) -> None:
    """INVALID_ARGUMENT with the field in google.rpc.BadRequest, before a worker hears of it."""
    cluster = await start_cluster(saying(ids_of(tokenizer, ANSWER)), redis_url=redis_url)
    events, error = await failed(cluster.front.inference.Chat(request_))

    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    bad = read_details(list(error.trailing_metadata() or ()), error_details_pb2.BadRequest)
    assert bad is not None
    assert [violation.field for violation in bad.field_violations] == [field]
    assert (events, cluster.worker.submits) == ([], [])


async def test_a_long_prompt_says_by_how_much(start_cluster: StartCluster, tokenizer: Tokenizer) -> None:
    """The number of tokens too many is in the message."""
    cluster = await start_cluster(saying(ids_of(tokenizer, ANSWER)))
    ids = await cluster.front.inference.Tokenize(api.TokenizeRequest(chat=user("x" * 5000)))
    _, error = await failed(cluster.front.inference.Chat(user("x" * 5000)))

    assert f"{len(ids.ids) + 1 - ids.max_context} too many" in str(error.details())


async def test_choices_share_prompt_and_seed(start_cluster: StartCluster, tokenizer: Tokenizer) -> None:
    """Each choice has its own events and its own end; the worker draws for each by its number."""
    cluster = await start_cluster(saying(ids_of(tokenizer, ANSWER)))
    events = await events_of(cluster.front.inference.Chat(user("?", n=3)))

    for choice in range(3):
        own = [event for event in events if event.choice == choice]
        assert kinds_of(own) == ["started", "text", "done"]
        assert answer_of(own) == "4"
    assert sorted(submit.choice for submit in cluster.worker.submits) == [0, 1, 2]
    assert len({submit.seed for submit in cluster.worker.submits}) == 1


async def test_logprobs_come_with_their_text(start_cluster: StartCluster, tokenizer: Tokenizer) -> None:
    """Each token of reasoning and answer has its log-probability beside the text that it completes."""
    ids = ids_of(
        tokenizer, "<|channel|>analysis<|message|>a<|end|><|start|>assistant<|channel|>final<|message|>é!<|return|>"
    )

    async def script(submit: pb.Submit) -> AsyncIterator[Action]:
        rivals = tuple(((token, -0.5), (7, -2.0)) for token in ids)
        yield Say(tuple(ids), STOPPED, logprobs=tuple(-float(i) for i in range(len(ids))), likeliest=rivals)

    cluster = await start_cluster(script)
    events = await events_of(cluster.front.inference.Chat(user("?", logprobs=True, top_logprobs=2)))

    assert cluster.worker.submits[0].sampling.top_logprobs == 2
    told = [(event.text.text, [token.id for token in event.text.logprobs]) for event in events if event.text.text]
    assert told == [("é", tokenizer.encode("é")), ("!", tokenizer.encode("!"))]
    thought = next(event.reasoning for event in events if event.reasoning.text)
    assert [(t.bytes, [r.id for r in t.likeliest]) for t in thought.logprobs] == [(b"a", [*tokenizer.encode("a"), 7])]


async def test_an_unenforceable_keyword_is_warned_of(start_cluster: StartCluster, tokenizer: Tokenizer) -> None:
    """What a lenient schema demands and cannot be enforced is told, and refused where the schema is strict."""
    cluster = await start_cluster(saying(ids_of(tokenizer, ANSWER)))
    schema = '{"type":"object","properties":{"a":{"type":"string","not":{"const":"x"}}}}'
    loose = api.Tool(name="f", parameters=schema)
    strict = api.Tool(name="f", parameters=schema, strict=True)
    events = await events_of(cluster.front.inference.Chat(user("?", tools=[loose])))
    _, error = await failed(cluster.front.inference.Chat(user("?", tools=[strict])))

    assert [event.warning.code for event in events if event.WhichOneof("event") == "warning"] == ["not_enforced"]
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT


TEXT_OF_DIGITS = api.ResponseFormat(kind=api.RESPONSE_FORMAT_KIND_REGEX, schema="[0-9]")
PYTHON_CALL = "<|channel|>analysis to=python code<|message|>2+2<|call|>"


async def test_the_server_runs_its_tools(start_cluster: StartCluster, tokenizer: Tokenizer, redis_url: str) -> None:
    """The model's python runs in the middle of the turn: call and result are told and stored, then the answer comes."""
    python = ScriptedTool(PYTHON, [ToolOutput("4")])
    script = taking_turns(tokenizer, PYTHON_CALL, ANSWER)
    cluster = await start_cluster(script, tools=[python, ScriptedTool(BROWSER, [ToolOutput("")])], redis_url=redis_url)
    events = await events_of(cluster.front.inference.Chat(user("?", server_tools=["python"], session_id="s")))

    assert kinds_of(events) == ["started", "tool_call", "tool_result", "text", "done"]
    (call,) = calls_in(events)
    assert (call.name, call.arguments, call.runs_on_server) == ("python", "2+2", True)
    result = next(event.tool_result for event in events if event.WhichOneof("event") == "tool_result")
    assert (result.id, result.name, result.content, result.failed) == (call.id, "python", "4", False)
    assert [(c.content, c.session_id) for c in python.calls] == [("2+2", "s")]
    prompt = prompt_of(cluster.worker, tokenizer, 1)
    assert "## python" in prompt
    assert "browser" not in prompt
    assert prompt.endswith(
        f"<|start|>assistant{PYTHON_CALL}"
        "<|start|>python to=assistant<|channel|>analysis<|message|>4<|end|><|start|>assistant"
    )
    stored = await cluster.front.sessions.GetSession(api.GetSessionRequest(session_id="s"))
    assert [item.message.role for item in stored.items][1:] == [api.ROLE_ASSISTANT, api.ROLE_TOOL, api.ROLE_ASSISTANT]
    assert len({submit.request_id for submit in cluster.worker.submits}) == 2
    offsets = [(event.cursor.offset, event.cursor.k) for event in events]
    assert offsets == sorted(set(offsets))


async def test_what_tools_answer_is_counted_as_input(start_cluster: StartCluster, tokenizer: Tokenizer) -> None:
    """As the usage says: an answer for which the tenant has no tokens left ends the turn before the model reads it."""
    python = ScriptedTool(PYTHON, [ToolOutput("x" * 9000), ToolOutput("4")])
    cluster = await start_cluster(
        taking_turns(tokenizer, PYTHON_CALL, PYTHON_CALL, ANSWER), tools=[python],
        limits=LimitsConfig(enforced=True, tokens_per_minute=9000, reserve_tokens=10), welcome={"max_context": 32_768},
    )  # fmt: skip
    events, error = await failed(cluster.front.inference.Chat(user("?", server_tools=["python"])))
    small = await events_of(cluster.front.inference.Chat(user("?", server_tools=["python"])))

    assert "tool_result" not in kinds_of(events)
    assert (error.code(), trailing(error)["shoal-reason"]) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "quota")
    assert len(cluster.worker.submits) == 1 + 2
    assert small[-1].HasField("done")


async def test_rounds_are_bounded(start_cluster: StartCluster, tokenizer: Tokenizer) -> None:
    """After the last call the model may call no more; it is warned of, and must answer."""
    python = ScriptedTool(PYTHON, [ToolOutput("4")])
    script = taking_turns(tokenizer, PYTHON_CALL, PYTHON_CALL, ANSWER)
    cluster = await start_cluster(script, tools=[python], tool_rounds=2)
    events = await events_of(cluster.front.inference.Chat(user("?", server_tools=["python"])))

    assert len(python.calls) == 2
    assert [event.warning.code for event in events if event.WhichOneof("event") == "warning"] == ["tools_spent"]
    assert answer_of(events) == "4"
    assert "python" in str(cluster.worker.submits[1].constraint)
    assert "python" not in str(cluster.worker.submits[2].constraint)


async def test_slow_tools_are_stopped(start_cluster: StartCluster, tokenizer: Tokenizer) -> None:
    """A tool that takes too long is cancelled, the model reads that, and the turn goes on."""
    python = ScriptedTool(PYTHON, [ToolOutput("never")], seconds=60.0)
    cluster = await start_cluster(taking_turns(tokenizer, PYTHON_CALL, ANSWER), tools=[python], tool_seconds=0.05)
    events = await events_of(cluster.front.inference.Chat(user("?", server_tools=["python"])))
    result = next(event.tool_result for event in events if event.WhichOneof("event") == "tool_result")

    assert (result.failed, "too long" in result.content) == (True, True)
    assert answer_of(events) == "4"


async def test_a_turn_of_calls_ends_with_its_tokens(start_cluster: StartCluster, tokenizer: Tokenizer) -> None:
    """max_tokens counts all rounds together."""
    python = ScriptedTool(PYTHON, [ToolOutput("4")])
    cluster = await start_cluster(saying(ids_of(tokenizer, PYTHON_CALL)), tools=[python], tool_rounds=100)
    most = len(ids_of(tokenizer, PYTHON_CALL)) * 3 // 2
    request = user("?", server_tools=["python"], limits=api.Limits(max_tokens=most))
    events = await events_of(cluster.front.inference.Chat(request))

    assert events[-1].done.finish_reason == api.FINISH_REASON_LENGTH
    assert events[-1].done.usage.output_tokens == most
    assert len(python.calls) == 1


async def test_a_session_remembers_the_servers_tools(
    start_cluster: StartCluster, tokenizer: Tokenizer, redis_url: str
) -> None:
    """The next turn need not name them; one that wants none of the session's tools says so."""
    python = ScriptedTool(PYTHON, [ToolOutput("4")])
    script = taking_turns(tokenizer, ANSWER, PYTHON_CALL, ANSWER, ANSWER)
    cluster = await start_cluster(script, tools=[python], redis_url=redis_url)
    chat = cluster.front.inference.Chat
    await events_of(chat(user("?", server_tools=["python"], tools=[LOOKUP], session_id="s")))
    second = await events_of(chat(user("?", session_id="s")))
    await events_of(chat(user("?", session_id="s", only_these_tools=True)))

    assert "tool_result" in kinds_of(second)
    assert "functions.lookup" in str(cluster.worker.submits[1].constraint)
    bare = prompt_of(cluster.worker, tokenizer)
    assert "## python" not in bare
    assert "namespace functions" not in bare


async def test_a_remembered_tool_that_is_gone_is_told(
    start_cluster: StartCluster, start_router: StartRouter, tokenizer: Tokenizer, redis_url: str
) -> None:
    """A session goes on at a router without the tool; the turn warns of it."""
    python = ScriptedTool(PYTHON, [ToolOutput("4")])
    cluster = await start_cluster(saying(ids_of(tokenizer, ANSWER)), tools=[python], redis_url=redis_url)
    other = await start_router(workers=(cluster.worker.address,), redis_url=redis_url)
    await events_of(cluster.front.inference.Chat(user("?", server_tools=["python"], session_id="s")))
    events = await events_of(other.inference.Chat(user("?", session_id="s")))

    assert answer_of(events) == "4"
    assert ["'python'" in event.warning.message for event in events if event.HasField("warning")] == [True]


@pytest.mark.parametrize("most", [0, 1])
async def test_a_request_may_bound_the_calls_itself(
    most: int, start_cluster: StartCluster, tokenizer: Tokenizer
) -> None:
    """Fewer than the server allows; after the last one the model cannot call any more."""
    python = ScriptedTool(PYTHON, [ToolOutput("4")])
    script = taking_turns(tokenizer, *[PYTHON_CALL] * most, ANSWER)
    cluster = await start_cluster(script, tools=[python])
    request = user("?", server_tools=["python"], max_tool_calls=most, response_format=TEXT_OF_DIGITS)
    events = await events_of(cluster.front.inference.Chat(request))

    assert (len(python.calls), answer_of(events)) == (most, "4")
    may = ["to=python" in str(submit.constraint) for submit in cluster.worker.submits]
    assert may == [True] * most + [False]
