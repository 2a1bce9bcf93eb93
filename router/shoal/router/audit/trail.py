"""What is recorded of a request: who, what, when, with which parameters, how it ended; the content as agreed."""

from __future__ import annotations

import hashlib
import json
import secrets
from base64 import b64decode, b64encode
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from google.protobuf.json_format import MessageToDict

from shoal.proto.v1 import inference_pb2 as api
from shoal.router.access.caller import Caller
from shoal.router.audit.log import AuditLog
from shoal.router.limits.policy import Recorded

_CONTENT = ("messages", "text", "tokens", "tools", "response_format")  # fields of requests that hold what people said
_NONCE = 12
MOST_STRANGERS = 20
"""Records a second of those who were not let in."""


class Sealer:
    """Encrypts content (AES-256-GCM), bound to the request that it belongs to."""

    def __init__(self, key: bytes) -> None:
        """`key` is 32 bytes."""
        self._cipher = AESGCM(key)

    def seal(self, text: str, request: str) -> str:
        """Base64 of nonce and ciphertext."""
        nonce = secrets.token_bytes(_NONCE)
        return b64encode(nonce + self._cipher.encrypt(nonce, text.encode(), request.encode())).decode()

    def open(self, sealed: str, request: str) -> str:
        """The text. Raises cryptography's InvalidTag when key or request are others."""
        raw = b64decode(sealed)
        return self._cipher.decrypt(raw[:_NONCE], raw[_NONCE:], request.encode()).decode()


@dataclass(slots=True)
class ToolUse:
    """One call of a tool."""

    named: dict[str, Any]
    arguments: list[str] = field(default_factory=list)
    result: str | None = None
    """What the server's tool gave; None: it is the caller's, or gave nothing."""


@dataclass(slots=True)
class Answer:
    """What a request's events say, collected."""

    text: list[str] = field(default_factory=list)
    tools: dict[tuple[int, int], ToolUse] = field(default_factory=dict)
    """By choice and number."""
    usage: dict[str, int] = field(default_factory=dict)
    finishes: list[str] = field(default_factory=list)
    flags: list[str] = field(default_factory=list)

    def read(self, event: api.ChatResponse | api.GenerateResponse) -> None:
        """The next event."""
        if isinstance(event, api.GenerateResponse):
            if event.HasField("tokens"):
                self.text.append(event.tokens.text)
        else:
            match event.WhichOneof("event"):
                case "text":
                    self.text.append(event.text.text)
                case "reasoning":
                    self.text.append(event.reasoning.text)
                case "tool_call":
                    self._called(event.choice, event.tool_call)
                case "tool_result":
                    if (use := self.tools.get((event.choice, event.tool_result.index))) is not None:
                        use.result, use.named["failed"] = event.tool_result.content, event.tool_result.failed
                case "warning":
                    self.flags.append(event.warning.code)
        if event.HasField("done"):
            self.finishes.append(api.FinishReason.Name(event.done.finish_reason))
            for name in ("input_tokens", "output_tokens", "cached_tokens", "reasoning_tokens"):
                self.usage[name] = self.usage.get(name, 0) + getattr(event.done.usage, name)

    def _called(self, choice: int, call: api.ToolCallDelta) -> None:
        place = (choice, call.index)
        if call.name:
            self.tools[place] = ToolUse({"name": call.name, "id": call.id, "on_server": call.runs_on_server})
        if place in self.tools and call.arguments:
            self.tools[place].arguments.append(call.arguments)


class Trail:
    """Writes records of requests."""

    def __init__(self, log: AuditLog, router: str, sealer: Sealer | None, now: Callable[[], float]) -> None:
        """`now` is unix time; `sealer` None: nothing can be encrypted, and is hashed instead."""
        self._log, self._router, self._sealer, self._now = log, router, sealer, now
        self._second = self._strangers = self._left_out = 0

    async def accepted(self, caller: Caller, method: str, request: str, model: str, asked: Any, how: Recorded) -> None:
        """Before anything is done. Raises AuditError."""
        fields = MessageToDict(asked, preserving_proto_field_name=True)
        content = {name: fields.pop(name) for name in _CONTENT if name in fields}
        prompt = self._kept(json.dumps(content, ensure_ascii=False, sort_keys=True), request, how)
        said = {"model": model, "parameters": _bounded(fields), "prompt": prompt}
        await self._write("accepted", caller, method, request, said)

    async def ended(
        self, caller: Caller, method: str, request: str, answer: Answer, outcome: str, how: Recorded
    ) -> None:
        """Afterwards, however it ended: `outcome` is a gRPC status, and its reason. Raises AuditError."""
        told: dict[str, Any] = {"outcome": outcome, "counts": answer.usage, "finish": answer.finishes}
        told["answer"] = self._kept("".join(answer.text), request, how)
        if answer.tools:
            told["tools"] = [self._used(use, request, how) for use in answer.tools.values()]
        if answer.flags:
            told["flags"] = answer.flags
        await self._write("ended", caller, method, request, told)

    async def changing(self, caller: Caller, method: str, about: str) -> None:
        """A call that generates nothing and changes something, before it does; `about`: what. Raises AuditError."""
        await self._write("accepted", caller, method, "", {"about": about} if about else {})

    async def called(self, caller: Caller | None, method: str, outcome: str, about: str = "") -> None:
        """A call that generates nothing, or one that was not let in (`caller` None). Raises AuditError.

        Of those not let in only some are recorded each second, with how many there were besides: nobody fills the disk
        who has no credential.
        """
        more: dict[str, Any] = {"outcome": outcome, **({"about": about} if about else {})}
        if caller is None:
            second = int(self._now())
            if second != self._second:
                self._second, self._strangers = second, 0
            self._strangers += 1
            if self._strangers > MOST_STRANGERS:
                self._left_out += 1
                return
            if self._left_out:
                more["besides"], self._left_out = self._left_out, 0
        await self._write("called", caller, method, "", more)

    async def close(self) -> None:
        """Once everything is written."""
        await self._log.close()

    def _used(self, use: ToolUse, request: str, how: Recorded) -> dict[str, Any]:
        told = {**use.named, "arguments": self._kept("".join(use.arguments), request, how)}
        return told if use.result is None else {**told, "result": self._kept(use.result, request, how)}

    def _kept(self, text: str, request: str, how: Recorded) -> dict[str, str]:
        if how == "store":
            return {"text": text}
        if how == "encrypt" and self._sealer is not None:
            return {"sealed": self._sealer.seal(text, request)}
        return {"sha256": hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()}

    async def _write(
        self, kind: str, caller: Caller | None, method: str, request: str, more: Mapping[str, Any]
    ) -> None:
        at = datetime.fromtimestamp(self._now(), UTC).isoformat(timespec="milliseconds")
        who = {} if caller is None else {"tenant": caller.tenant, "key": caller.key_id, "role": caller.role}
        if caller is not None and caller.subject:
            who["subject"] = caller.subject
        named = {"request": request} if request else {}
        await self._log.write(
            {"kind": kind, "at": at, "router": self._router, **who, "method": method, **named, **more}
        )


def _bounded(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters as they are; those that are long, such as tools and schemas, by their hash."""
    bounded: dict[str, Any] = {}
    for name, value in fields.items():
        text = json.dumps(value, ensure_ascii=False, sort_keys=True)
        bounded[name] = value if len(text) <= 512 else {"sha256": hashlib.sha256(text.encode()).hexdigest()}
    return bounded
