"""Plain HTTP, as any client speaks it."""

from __future__ import annotations

import asyncio
import http.client
import json
import ssl
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

HELLO = {"model": "model", "messages": [{"role": "user", "content": "Hello?"}]}


@dataclass(frozen=True)
class Answer:
    """What came back."""

    status: int
    headers: Mapping[str, str]
    text: str

    @property
    def json(self) -> Any:
        """The body."""
        return json.loads(self.text)

    @property
    def error(self) -> Any:
        """The error in the body."""
        return self.json["error"]

    @property
    def events(self) -> list[Any]:
        """The data of server-sent events, without the mark of the end."""
        lines = [line.removeprefix("data: ") for line in self.text.splitlines() if line.startswith("data: ")]
        return [json.loads(line) for line in lines if line != "[DONE]"]


async def ask(
    address: str, path: str, body: Any = None, method: str = "", tls: ssl.SSLContext | None = None, **headers: str
) -> Answer:
    """Ask once. A body is sent as JSON unless it is bytes, or pieces of bytes, already."""
    raw = body if body is None or isinstance(body, bytes | Iterator) else json.dumps(body).encode()
    named = {name.replace("_", "-"): value for name, value in headers.items()}

    def send() -> Answer:
        connection = (
            http.client.HTTPConnection(address, timeout=30)
            if tls is None
            else http.client.HTTPSConnection(address, timeout=30, context=tls)
        )
        connection.request(method or ("GET" if raw is None else "POST"), path, raw, named)
        response = connection.getresponse()
        answer = Answer(response.status, {k.lower(): v for k, v in response.getheaders()}, response.read().decode())
        connection.close()
        return answer

    return await asyncio.to_thread(send)


async def hear(address: str, path: str, body: Any, events: int, **headers: str) -> list[Any]:
    """The first events of a stream; then the connection is closed."""

    def listen() -> list[Any]:
        connection = http.client.HTTPConnection(address, timeout=10)
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request("POST", path, json.dumps(body).encode(), named)
        response = connection.getresponse()
        heard: list[Any] = []
        while len(heard) < events and (line := response.readline()):
            if line.startswith(b"data: "):
                heard.append(json.loads(line.removeprefix(b"data: ")))
        connection.close()
        return heard

    return await asyncio.to_thread(listen)
