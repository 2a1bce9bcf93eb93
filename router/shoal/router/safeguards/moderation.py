"""A classifier behind OpenAI's moderation API: `{"input"}` in, `{"results": [{"flagged", "categories"}]}` out."""

from __future__ import annotations

import asyncio
import json
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from http.client import HTTPException

import structlog

from shoal.router.errors import ContentError, ModerationAwayError
from shoal.router.reading import read_within

_MOST_BYTES = 1 << 20
_MOST_ASKED = 64  # questions at once; more wait, as part of their time
_RETRY_AFTER_MS = 2_000

_NO_ANSWER = (OSError, TimeoutError, HTTPException, ValueError, LookupError, TypeError, AttributeError)

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Moderator:
    """Asks it."""

    url: str
    model: str
    key: str
    seconds: float
    refuse: bool
    """Whether what it cannot judge is refused."""
    _threads: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(_MOST_ASKED, "moderation"))
    """Its own: a service that is slow holds up nobody else's work."""

    async def check(self, text: str, where: str) -> None:
        """Raises ContentError for what is flagged, ModerationAwayError when nobody judges and that is refused."""
        if not text.strip():
            return
        try:
            async with asyncio.timeout(self.seconds):
                asking = asyncio.get_running_loop().run_in_executor(self._threads, self._ask, text)
                answer = json.loads(await asking)
            result = answer["results"][0]
            flagged, categories = bool(result["flagged"]), result.get("categories") or {}
            named = sorted(str(name) for name, hit in categories.items() if hit)
        except _NO_ANSWER as error:
            _log.warning("moderation_away", problem=type(error).__name__, refused=self.refuse)
            if self.refuse:
                raise ModerationAwayError("nobody can judge this now", retry_after_ms=_RETRY_AFTER_MS) from error
            return
        if flagged:
            raise ContentError(f"{where} was flagged: {', '.join(named) or 'not allowed here'}")

    def _ask(self, text: str) -> bytes:
        body = {"input": text, **({"model": self.model} if self.model else {})}
        headers = {"content-type": "application/json"}
        if self.key:
            headers["authorization"] = f"Bearer {self.key}"
        request = urllib.request.Request(self.url, json.dumps(body).encode(), headers)  # noqa: S310  # http(s), checked by SafeguardsConfig
        with urllib.request.urlopen(request, timeout=self.seconds) as answer:  # noqa: S310  # the same
            return read_within(answer, _MOST_BYTES, self.seconds)
