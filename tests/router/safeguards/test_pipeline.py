"""Safeguards around real requests, with a moderation service of the test's own."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import grpc
import pytest
import redis

from shoal.proto.v1 import inference_pb2 as api
from shoal.router.audit.config import AuditConfig
from shoal.router.fleet.scripted_worker import saying
from shoal.router.limits.config import LimitsConfig
from shoal.router.safeguards.config import SafeguardsConfig
from shoal.router.safeguards.filter import Rules
from shoal.router.tokenizer import Tokenizer
from shoal.wire.settings import SettingError
from tests.router.byte_tokenizer import ids_of
from tests.router.conftest import StartCluster
from tests.router.http.asking import ask
from tests.router.talking import answer_of, events_of, failed, trailing, user

CARD, MAIL = "4111 1111 1111 1111", "jo@example.org"


def words(text: str) -> str:
    """A turn that thinks and answers."""
    return f"<|channel|>analysis<|message|>{text}<|end|><|start|>assistant<|channel|>final<|message|>{text}<|return|>"


class Moderation(BaseHTTPRequestHandler):
    """Flags what speaks of a bomb; fails while `broken`."""

    asked: list[str] = []  # noqa: RUF012  # one per server class, made below
    broken = False

    def do_POST(self) -> None:
        """See BaseHTTPRequestHandler."""
        said = json.loads(self.rfile.read(int(self.headers["content-length"])))["input"]
        self.asked.append(said)
        flagged = "bomb" in said
        body = json.dumps({"id": "m", "results": [{"flagged": flagged, "categories": {"violence": flagged}}]})
        self.send_response(500 if self.broken else 200)
        self.end_headers()
        self.wfile.write(body.encode())

    def log_message(self, *args: Any) -> None:
        """Quiet."""


class Many(ThreadingHTTPServer):
    """One that many may ask at once."""

    request_queue_size = 128


def all_of(folder: Path) -> str:
    """Every trail in it."""
    return "".join(path.read_text() for path in folder.glob("*.jsonl"))


@pytest.fixture
def moderation() -> Iterator[tuple[str, type[Moderation]]]:
    """A running service, and how to look into it."""
    kind = type("Own", (Moderation,), {"asked": [], "broken": False})
    server = Many(("127.0.0.1", 0), kind)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/v1/moderations", kind
    server.shutdown()
    server.server_close()
    thread.join()


async def test_personal_data_neither_enters_nor_leaves_nor_stays(
    start_cluster: StartCluster,
    tokenizer: Tokenizer,
    redis_url: str,
    tmp_path: Path,
    logged: Callable[[], str],
) -> None:
    """Not to the worker, not to the client in any event, not in Redis, the audit trail or the logs."""
    script = saying(ids_of(tokenizer, words(f"write {MAIL} or pay {CARD} now")), step=1)
    cluster = await start_cluster(
        script,
        safeguards=SafeguardsConfig(redact=("card", "email")),
        audit=AuditConfig(directory=str(tmp_path), usual="store"),
        redis_url=redis_url, http_port=0, model_name="model",
    )  # fmt: skip
    chat = user(f"I am {MAIL}, my card is {CARD}", session_id="s", logprobs=True)
    events = await events_of(cluster.front.inference.Chat(chat))
    answer = await ask(
        cluster.front.listening.http, "/v1/responses", {"model": "model", "input": f"call {MAIL}", "stream": True}
    )
    session = await cluster.front.sessions.GetSession(api.GetSessionRequest(session_id="s"))
    await cluster.front.router.stop(0)
    store = redis.Redis.from_url(redis_url)
    kept = b"".join(store.dump(key) or b"" for key in store.keys("shoal:s*") + store.keys("shoal:response:*"))
    store.close()
    entered = tokenizer.decode([i for submit in cluster.worker.submits for part in submit.prompt for i in part.ids])

    assert answer_of(events) == "write [email] or pay [card] now"
    assert "".join(event.reasoning.text for event in events) == "write [email] or pay [card] now"
    assert not any(event.text.logprobs or event.reasoning.logprobs for event in events)
    assert [item.message.content for item in session.items][-1] == "write [email] or pay [card] now"
    seen = {
        "worker": entered, "events": str(events), "http": answer.text, "session": str(session),
        "redis": kept.decode("latin-1"), "trail": all_of(tmp_path),
        "log": logged(),
    }  # fmt: skip
    for where, text in seen.items():
        assert MAIL not in text, where
        assert "jo@" not in text, where
        assert CARD not in text, where
        assert "4111 1111" not in text, where
    assert "[email]" in seen["worker"]
    assert "request_ended" in seen["log"]


@pytest.mark.parametrize("size", [1, 3, 1000])
async def test_raw_generation_is_redacted_the_same(
    start_cluster: StartCluster, tokenizer: Tokenizer, size: int
) -> None:
    """However many tokens come at once; and no ids that would tell."""
    cluster = await start_cluster(
        saying(tokenizer.encode(f"pay {CARD}, thanks"), step=size), safeguards=SafeguardsConfig(redact=("card",))
    )
    events = await events_of(cluster.front.inference.Generate(api.GenerateRequest(text="x")))

    assert "".join(event.tokens.text for event in events) == "pay [card], thanks"
    assert not any(event.tokens.ids for event in events)
    assert events[-1].HasField("done")


async def test_denied_words_are_refused_on_both_sides(start_cluster: StartCluster, tokenizer: Tokenizer) -> None:
    """In the prompt before a worker sees it; in the answer before the client sees the first of their letters."""
    cluster = await start_cluster(
        saying(ids_of(tokenizer, words("it is called Kraken here")), step=1),
        safeguards=SafeguardsConfig(deny=("kraken",)), http_port=0, model_name="model",
    )  # fmt: skip
    _, prompt = await failed(cluster.front.inference.Chat(user("what is KRAKEN?")))
    assert not cluster.worker.submits
    events, answer = await failed(cluster.front.inference.Chat(user("what is it?")))
    body = {"model": "model", "messages": [{"role": "user", "content": "the Kraken!"}]}
    http = await ask(cluster.front.listening.http, "/v1/chat/completions", body)

    assert prompt.code() is answer.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert trailing(answer)["shoal-reason"] == "content_refused"
    said = "".join(event.text.text + event.reasoning.text for event in events)
    assert "k" not in said.lower().replace("ok", "")
    assert (http.status, http.error["code"]) == (400, "content_refused")


@pytest.mark.parametrize("text", ["what is KRAKEN?", "what is it?"], ids=["prompt", "answer"])
async def test_who_is_refused_again_and_again_is_held_off(
    text: str, start_cluster: StartCluster, tokenizer: Tokenizer
) -> None:
    """For what he says, and for what he makes the model say: then he is not even listened to for a while."""
    cluster = await start_cluster(
        saying(ids_of(tokenizer, words("it is called Kraken here"))),
        safeguards=SafeguardsConfig(deny=("kraken",)), limits=LimitsConfig(enforced=True, tolerance=2),
    )  # fmt: skip
    for _ in range(3):
        _, error = await failed(cluster.front.inference.Chat(user(text)))
        assert trailing(error)["shoal-reason"] == "content_refused"
    _, held = await failed(cluster.front.inference.Chat(user("something else")))

    assert held.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "held off" in (held.details() or "")
    assert int(trailing(held)["retry-after-ms"]) > 0


async def test_a_classifier_judges_prompts_and_answers(
    start_cluster: StartCluster, tokenizer: Tokenizer, moderation: tuple[str, type[Moderation]]
) -> None:
    """What it flags is refused; an answer is held until it was judged; away, it is refused or allowed as was said."""
    url, service = moderation
    cluster = await start_cluster(
        saying(ids_of(tokenizer, words("take a bomb"))), safeguards=SafeguardsConfig(moderation_url=url)
    )
    chat = cluster.front.inference.Chat
    _, prompt = await failed(chat(user("how to make a bomb")))
    events, answer = await failed(chat(user("what now")))
    service.broken = True
    _, away = await failed(chat(user("hello")))

    assert "flagged: violence" in (prompt.details() or "")
    assert "the answer was flagged" in (answer.details() or "")
    assert "".join(event.text.text + event.reasoning.text for event in events) == ""
    assert service.asked[:2] == ["how to make a bomb", "what now"]
    assert away.code() is grpc.StatusCode.UNAVAILABLE
    assert trailing(away)["shoal-reason"] == "moderation_away"

    open_one = await start_cluster(
        saying(ids_of(tokenizer, words("fine"))),
        safeguards=SafeguardsConfig(moderation_url=url, moderation_on_failure="allow"),
    )
    assert answer_of(await events_of(open_one.front.inference.Chat(user("hello")))) == "fine"


async def test_tool_calls_keep_their_shape(start_cluster: StartCluster, tokenizer: Tokenizer) -> None:
    """Arguments are redacted as text: they stay JSON, and the call opens once."""
    said = f'<|channel|>commentary to=functions.mail<|message|>{{"to": "{MAIL}", "n": 1}}<|call|>'
    cluster = await start_cluster(
        saying(ids_of(tokenizer, said), step=1), safeguards=SafeguardsConfig(redact=("email",))
    )
    request = user("send", tools=[api.Tool(name="mail")])
    events = await events_of(cluster.front.inference.Chat(request))
    calls = [event.tool_call for event in events if event.HasField("tool_call")]

    assert json.loads("".join(call.arguments for call in calls)) == {"to": "[email]", "n": 1}
    assert [call.name for call in calls if call.name] == ["mail"]


async def test_what_tools_and_schemas_say_is_part_of_the_prompt(
    start_cluster: StartCluster, tokenizer: Tokenizer
) -> None:
    """Their descriptions are redacted and stay JSON; a denied word in one is refused, and a classifier reads them."""
    cluster = await start_cluster(
        saying(ids_of(tokenizer, words("fine"))), safeguards=SafeguardsConfig(redact=("email",), deny=("kraken",))
    )
    chat = cluster.front.inference.Chat

    def asking(said: str) -> api.ChatRequest:
        schema = json.dumps({"type": "object", "properties": {"to": {"type": "string", "description": said}}})
        return user("x", tools=[api.Tool(name="mail", description=said, parameters=schema)])

    await events_of(chat(asking(f"as {MAIL}")))
    entered = tokenizer.decode([i for part in cluster.worker.submits[0].prompt for i in part.ids])
    _, refused = await failed(chat(asking("the Kraken")))
    form = api.ResponseFormat(kind=api.RESPONSE_FORMAT_KIND_JSON_SCHEMA, schema='{"title": "kraken"}', name="n")
    _, also = await failed(chat(user("x", response_format=form)))

    assert entered.count("[email]") == 2
    assert MAIL not in entered
    assert trailing(refused)["shoal-reason"] == trailing(also)["shoal-reason"] == "content_refused"


async def test_a_long_prompt_is_looked_at_beside_the_event_loop(
    start_cluster: StartCluster, tokenizer: Tokenizer
) -> None:
    """Others go on meanwhile, and it is redacted the same."""
    cluster = await start_cluster(
        saying(ids_of(tokenizer, words("fine"))),
        safeguards=SafeguardsConfig(redact=("card",)),
        welcome={"max_context": 131_072},
    )
    before, threads = threading.get_ident(), set[int]()
    whole = Rules.whole

    def noted(rules: Rules, text: str, where: str) -> str:
        if len(text) > 1000:
            threads.add(threading.get_ident())
        return whole(rules, text, where)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Rules, "whole", noted)
        await events_of(cluster.front.inference.Chat(user(f"{'so it is ' * 10_000} {CARD}")))
    entered = tokenizer.decode([i for part in cluster.worker.submits[0].prompt for i in part.ids])

    assert len(threads) == 1
    assert before not in threads
    assert "so it is  [card]" in entered


async def test_each_tenant_has_its_own(start_cluster: StartCluster, tokenizer: Tokenizer, tmp_path: Path) -> None:
    """What one tenant wants taken out another may see."""
    tenants = tmp_path / "tenants.toml"
    tenants.write_text('[default]\nredact = ["email"]\n')
    script = saying(ids_of(tokenizer, words(f"{MAIL} {CARD}")))
    cluster = await start_cluster(script, limits=LimitsConfig(tenants_file=str(tenants)))

    assert answer_of(await events_of(cluster.front.inference.Chat(user("x")))) == f"[email] {CARD}"


@pytest.mark.parametrize(
    "given", [{"redact": ("mail",)}, {"deny": ("",)}, {"moderation_url": "file:///etc"}, {"moderation_on_failure": "x"}]
)
def test_wrong_settings_are_told_by_name(given: dict[str, Any]) -> None:
    """Before anything starts."""
    with pytest.raises(SettingError, match=rf"safeguards\.{next(iter(given))}"):
        SafeguardsConfig(**given)


async def test_nothing_is_looked_at_where_nothing_is_asked_for(start_cluster: StartCluster) -> None:
    """Token ids stay where there are no safeguards."""
    cluster = await start_cluster(saying([1, 2]))
    events = await events_of(cluster.front.inference.Generate(api.GenerateRequest(text="x")))
    await asyncio.sleep(0)
    assert [i for event in events for i in event.tokens.ids] == [1, 2]
