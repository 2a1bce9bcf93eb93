"""One turn of the model: its tokens in, a client's events and the messages to keep out."""

from __future__ import annotations

from collections.abc import Sequence
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
from shoal.router.inference.numbering import Numbering
from shoal.router.inference.stop_text import StopText
from shoal.router.tokenizer import Tokenizer

_FUNCTIONS = "functions."


class TurnReader:
    """Reads the tokens of one turn. The events depend on the token sequence alone.

    Stop texts apply to what the end user sees, not to reasoning or to tool calls.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        control: ControlTokens,
        renderer: Renderer,
        *,
        stops: Sequence[str],
        call_prefix: str,
    ) -> None:
        """`call_prefix` begins the names of tool calls."""
        self._control, self._renderer = control, renderer
        self._parser = parse.Parser(tokenizer, control)
        self._stops, self._call_prefix = stops, call_prefix
        self._stop = StopText(stops)
        self._shown = ""
        self._numbering = Numbering()
        self._calls = -1
        self._called = False
        self.usage = api.Usage()
        self.messages: list[ChatMessage] = []
        """What the model said so far, rendered as the next turn will see it."""
        self.finish: api.FinishReason.ValueType | None = None
        """Why the turn ended, once it did."""

    def event(self, **happened: object) -> api.ChatResponse:
        """An event with the next cursor, such as `event(started=…)`."""
        cursor = self._numbering.next(self.usage.output_tokens)
        return api.ChatResponse(cursor=cursor, **happened)  # type: ignore[arg-type]  # one field of the oneof, by name

    def read(self, output: Tokens) -> list[api.ChatResponse]:
        """The events of the worker's output. With the last one `finish` is set."""
        self.usage.cached_tokens = max(self.usage.cached_tokens, output.cached_tokens)
        events: list[api.ChatResponse] = []
        for token in output.ids:
            self.usage.output_tokens += 1
            events += self._tell(self._parser.push(token))
            if self._stop.reached:
                self.finish = api.FINISH_REASON_STOP
                return events
        if output.finish != pb.SEQUENCE_FINISH_UNSPECIFIED:
            events += self._tell(self._parser.finish())
            self.finish = FINISH[output.finish]
            if self._called and self.finish == api.FINISH_REASON_STOP:
                self.finish = api.FINISH_REASON_TOOL_CALL
        return events

    def _tell(self, read: list[parse.Event]) -> list[api.ChatResponse]:
        events: list[api.ChatResponse] = []
        for item in read:
            if self._stop.reached:
                break
            match item:
                case parse.Opened(header=header):
                    self._stop, self._shown = StopText(self._stops), ""
                    if header.recipient:
                        events.append(self._opened_call(header))
                case parse.Delta(header=header, text=text):
                    events += self._delta(header, text)
                case parse.Closed():
                    events += self._closed(item)
                case parse.Repaired(code=code, message=message):
                    events.append(self.event(warning=api.Warning(code=code, message=message)))
        return events

    def _opened_call(self, header: Header) -> api.ChatResponse:
        self._calls += 1
        name = header.recipient.removeprefix(_FUNCTIONS)
        first = api.ToolCallDelta(index=self._calls, id=f"{self._call_prefix}{self._calls}", name=name)
        return self.event(tool_call=first)

    def _delta(self, header: Header, text: str) -> list[api.ChatResponse]:
        if header.recipient:
            return [self.event(tool_call=api.ToolCallDelta(index=self._calls, arguments=text))]
        if header.channel == "analysis":
            return [self.event(reasoning=api.ReasoningDelta(text=text))]
        self._shown += (shown := self._stop.push(text))
        events = [self.event(text=api.TextDelta(text=shown))] if shown else []
        if self._stop.reached:
            self._keep(header, self._shown, None)
        return events

    def _closed(self, closed: parse.Closed) -> list[api.ChatResponse]:
        held = self._stop.finish()
        self._called = closed.end == self._control.call
        if closed.header.channel == "analysis":
            self.usage.reasoning_tokens += len(closed.content_ids)
        self._keep(closed.header, closed.text, closed.content_ids)
        return [self.event(text=api.TextDelta(text=held))] if held else []

    def _keep(self, header: Header, text: str, content_ids: Sequence[int] | None) -> None:
        """Remember a message; without ids (its text was cut at a stop text) it is encoded anew."""
        message = ChatMessage("assistant", text, header.channel, header.recipient, content_type=header.content_type)
        if content_ids is None:
            rendered = self._renderer.message(message)
        else:
            rendered = self._renderer.generated(message, content_ids)
        self.messages.append(replace(message, rendered=rendered))
