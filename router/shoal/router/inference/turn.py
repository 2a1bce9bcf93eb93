"""One turn of the model: its tokens in, a client's events and the messages to keep out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from shoal.proto.v1 import inference_pb2 as api
from shoal.proto.v1 import worker_pb2 as pb
from shoal.router.fleet.backend import Tokens
from shoal.router.harmony import parse
from shoal.router.harmony.control import ControlTokens
from shoal.router.harmony.header import Header
from shoal.router.harmony.message import ChatMessage
from shoal.router.harmony.render import Renderer
from shoal.router.inference.generate import FINISH
from shoal.router.inference.logprobs import logprobs_of
from shoal.router.inference.numbering import Numbering
from shoal.router.inference.stop_text import StopText
from shoal.router.tokenizer import Tokenizer

MOST_CALLS = 64
"""Calls in one turn, after which it ends."""

_FUNCTIONS = "functions."


class TurnReader:
    """Reads the tokens of one choice of a turn. The events depend on the token sequence alone.

    Stop texts apply to what the end user sees, not to reasoning or to tool calls. A turn in which the server runs tools
    is several rounds of tokens: `answered` begins another. A call ends the round, unless calls are parallel: then only
    what is no call of the caller's functions ends it, and is left out.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        control: ControlTokens,
        renderer: Renderer,
        *,
        stops: Sequence[str],
        call_prefix: str,
        choice: int = 0,
        redact: Callable[[str], str] | None = None,
        parallel: bool = False,
        on_server: Callable[[str], bool] = lambda recipient: False,
    ) -> None:
        """`call_prefix` begins the names of tool calls; `on_server` tells by the recipient which ones the server
        answers."""
        self._tokenizer, self._control, self._renderer, self._redact = tokenizer, control, renderer, redact
        self._parser = parse.Parser(tokenizer, control)
        self._stops, self._call_prefix = stops, call_prefix
        self._choice, self._parallel, self._on_server = choice, parallel, on_server
        self._stop = StopText(stops)
        self._shown = ""
        self._numbering = Numbering()
        self._message = -1
        self._calls = -1
        self._called = False  # the message that was read last is a whole call
        self._between: list[parse.Repaired] | None = None  # after a call, until it is clear that another one follows
        self._rounds = 0
        self._pending: list[api.TokenLogprob] = []  # of tokens whose text is not told yet
        self.usage = api.Usage()
        self.numerics_changed = False
        """Whether some of it was computed by a worker that computes other bits than the first one."""
        self.messages: list[ChatMessage] = []
        """What was said so far, rendered as the next turn will see it."""
        self.finish: api.FinishReason.ValueType | None = None
        """Why the turn ended, once it did."""

    @property
    def server_call(self) -> ChatMessage | None:
        """The call that ended the turn and that the server answers."""
        if self.finish != api.FINISH_REASON_TOOL_CALL or not self.messages:
            return None
        last = self.messages[-1]
        return last if self._on_server(last.recipient) else None

    def event(self, **happened: object) -> api.ChatResponse:
        """An event with the next cursor, such as `event(started=…)`."""
        cursor = self._numbering.next(self.usage.output_tokens)
        return api.ChatResponse(cursor=cursor, choice=self._choice, **happened)  # type: ignore[arg-type]  # one field of the oneof, by name

    def read(self, output: Tokens) -> list[api.ChatResponse]:
        """The events of the worker's output. With the last one `finish` is set."""
        if not self._rounds:  # later prompts hold what was generated, which is not input
            self.usage.cached_tokens = max(self.usage.cached_tokens, output.cached_tokens)
        self.numerics_changed |= output.numerics_changed
        events: list[api.ChatResponse] = []
        told = logprobs_of(output, self._tokenizer)
        for index, token in enumerate(output.ids):
            self.usage.output_tokens += 1
            before = self._parser.open_ids
            read = self._parser.push(token)
            if told and self._parser.open_ids == before + 1:
                self._pending.append(told[index])
            events += self._tell(read)
            if self.finish is not None:
                return events
        if output.finish != pb.SEQUENCE_FINISH_UNSPECIFIED:
            events += self._tell(self._parser.finish())
            if self.finish is None:
                self.finish = FINISH[output.finish]
                if self._between is not None or (self._called and self.finish == api.FINISH_REASON_STOP):
                    self.finish = api.FINISH_REASON_TOOL_CALL
        return events

    def done(self) -> api.Done:
        """The end of a turn that has a `finish`."""
        assert self.finish is not None, "a backend's stream ends with a finish"
        return api.Done(finish_reason=self.finish, usage=self.usage, numerics_changed=self.numerics_changed)

    def answered(self, content: str, *, failed: bool) -> api.ChatResponse:
        """The server ran the tool that `server_call` wanted: its result, as an event and as a message to keep.

        The model then goes on in another round.
        """
        call = self.server_call
        assert call is not None, "no call waits for an answer"
        result = ChatMessage(
            "tool", content, call.channel, recipient="assistant", name=call.recipient, call_id=call.call_id
        )
        rendered = self._renderer.message(result)
        self.messages.append(replace(result, rendered=rendered))
        self.usage.input_tokens += len(rendered.ids) + len(self._renderer.opening)
        self._rounds += 1
        self._parser, self._stop = parse.Parser(self._tokenizer, self._control), StopText(self._stops)
        self.finish, self._called, self._between = None, False, None
        told = api.ToolResult(index=self._calls, id=call.call_id, name=call.recipient, content=content, failed=failed)
        return self.event(tool_result=told)

    def _tell(self, read: list[parse.Event]) -> list[api.ChatResponse]:
        events: list[api.ChatResponse] = []
        for item in read:
            if self._between is not None:
                if isinstance(item, parse.Repaired):
                    self._between.append(item)
                    continue
                if isinstance(item, parse.Opened) and not item.header.recipient.startswith(_FUNCTIONS):
                    self.finish = api.FINISH_REASON_TOOL_CALL
                events += [] if self.finish is not None else [self._repaired(held) for held in self._between]
                self._between = None
            if self.finish is not None:
                break
            match item:
                case parse.Opened(header=header):
                    self._stop, self._shown, self._pending = StopText(self._stops), "", []
                    self._message += 1
                    if header.recipient:
                        events.append(self._opened_call(header))
                case parse.Delta(header=header, text=text):
                    events += self._delta(header, text)
                case parse.Closed():
                    events += self._closed(item)
                case parse.Repaired():
                    events.append(self._repaired(item))
            if self._stop.reached:
                self.finish = api.FINISH_REASON_STOP
        return events

    def _repaired(self, repaired: parse.Repaired) -> api.ChatResponse:
        return self.event(warning=api.Warning(code=repaired.code, message=repaired.message))

    def _opened_call(self, header: Header) -> api.ChatResponse:
        self._calls += 1
        first = api.ToolCallDelta(
            index=self._calls,
            id=self._call_id,
            name=header.recipient.removeprefix(_FUNCTIONS),
            recipient=header.recipient,
            runs_on_server=self._on_server(header.recipient),
            message=self._message,
        )
        return self.event(tool_call=first)

    @property
    def _call_id(self) -> str:
        return f"{self._call_prefix}{self._calls}"

    def _delta(self, header: Header, text: str) -> list[api.ChatResponse]:
        if header.recipient:
            piece = api.ToolCallDelta(index=self._calls, arguments=text, message=self._message, logprobs=self._told())
            return [self.event(tool_call=piece)]
        if header.channel == "analysis":
            thought = api.ReasoningDelta(text=text, logprobs=self._told(), message=self._message)
            return [self.event(reasoning=thought)]
        self._shown += (shown := self._stop.push(text))
        events = [self._text(header, shown)] if shown else []
        if self._stop.reached:
            self._count(header, self._parser.open_ids)
            self._keep(header, self._shown, None)
        return events

    def _text(self, header: Header, text: str) -> api.ChatResponse:
        delta = api.TextDelta(text=text, logprobs=self._told(), channel=header.channel, message=self._message)
        return self.event(text=delta)

    def _told(self) -> list[api.TokenLogprob]:
        pending, self._pending = self._pending, []
        return pending

    def _closed(self, closed: parse.Closed) -> list[api.ChatResponse]:
        held = self._stop.finish()
        recipient = closed.header.recipient
        self._called = bool(recipient) and closed.end is not None
        self._count(closed.header, len(closed.content_ids))
        self._keep(closed.header, closed.text, closed)
        if recipient and closed.end == self._control.call:
            mine = recipient.startswith(_FUNCTIONS) and not self._on_server(recipient)
            if self._parallel and mine and self._calls + 1 < MOST_CALLS:
                self._between = []
            else:
                self.finish = api.FINISH_REASON_TOOL_CALL
        return [self._text(closed.header, held)] if held else []

    def _count(self, header: Header, tokens: int) -> None:
        if header.recipient:
            self.usage.tool_call_tokens += tokens
        match header.channel:
            case "analysis":
                self.usage.reasoning_tokens += tokens
            case "final":
                self.usage.answer_tokens += tokens
            case _ if not header.recipient:
                self.usage.commentary_tokens += tokens

    def _keep(self, header: Header, text: str, closed: parse.Closed | None) -> None:
        """Remember a message; one whose text was cut at a stop text, or redacted, is encoded anew."""
        if self._redact is not None and (clean := self._redact(text)) != text:
            text, closed = clean, None
        message = ChatMessage(
            "assistant",
            text,
            header.channel,
            header.recipient,
            call_id=self._call_id if header.recipient else "",
            content_type=header.content_type,
        )
        if closed is None:
            rendered = self._renderer.message(message)
        else:
            rendered = self._renderer.generated(message, closed.content_ids, closed.header_ids)
        self.messages.append(replace(message, rendered=rendered))
