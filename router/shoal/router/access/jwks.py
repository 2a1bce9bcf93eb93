"""The public keys that tokens are checked by, from a file or an https:// URL."""

from __future__ import annotations

import asyncio
import json
import ssl
import urllib.request
from collections.abc import Callable
from pathlib import Path

import jwt
import structlog

from shoal.router.errors import CredentialsAwayError
from shoal.router.reading import read_within

_TIMEOUT = 5.0
_PATIENCE = 1.0  # seconds that callers whose key is known wait for a provider that is slow
_MOST_BYTES = 1 << 20
_LEAST_GAP = 10.0  # seconds between two looks, whatever unknown keys tokens name

_log = structlog.get_logger(__name__)


class Jwks:
    """Keys by their id. Looked for again when they are old, or when a token names one that is not known."""

    def __init__(self, source: str, ca: str, max_age: float, clock: Callable[[], float]) -> None:
        """`clock` gives seconds that never go back; after `max_age` of them the keys are read again."""
        self._source, self._ca, self._max_age, self._clock = source, ca, max_age, clock
        self._keys: dict[str, jwt.PyJWK] = {}
        self._read_at = self._tried_at = float("-inf")
        self._looking: asyncio.Task[None] | None = None
        self._raw = b""
        self.version = 0
        """Rises when the keys change."""

    async def key(self, key_id: str) -> jwt.PyJWK | None:
        """The key, None when there is none. Raises CredentialsAwayError when the keys could never be read."""
        await self.refresh(wanted=key_id)
        if self._read_at == float("-inf"):
            raise CredentialsAwayError("the keys of tokens cannot be read now", retry_after_ms=int(_LEAST_GAP * 1000))
        return self._keys.get(key_id)

    async def refresh(self, wanted: str | None = None) -> None:
        """Look again when the keys are old, or when one is wanted that is not there. Whoever comes meanwhile waits for
        what is found, but not for a provider that is silent."""
        old, known = self._clock() - self._read_at > self._max_age, wanted is None or wanted in self._keys
        if known and not old:
            return
        if self._looking is None and self._clock() - self._tried_at > _LEAST_GAP:
            self._looking = asyncio.create_task(self._look(), name="jwks")
            self._looking.add_done_callback(self._looked)
        if self._looking is not None:
            await asyncio.wait({self._looking}, timeout=_PATIENCE if known and self._keys else 2 * _TIMEOUT)

    def _looked(self, task: asyncio.Task[None]) -> None:
        self._looking = None
        if not task.cancelled():
            task.result()

    async def _look(self) -> None:
        self._tried_at = self._clock()
        try:
            raw = await asyncio.to_thread(self._fetch)
            keys = jwt.PyJWKSet.from_dict(json.loads(raw)).keys
        except (OSError, ValueError, jwt.PyJWTError) as error:
            _log.warning("jwks_away", problem=f"{type(error).__name__}: {error}", known=len(self._keys))
            return
        self.version += raw != self._raw
        self._raw = raw
        self._keys = {key.key_id or "": key for key in keys}
        self._read_at = self._clock()

    def _fetch(self) -> bytes:
        if "://" not in self._source:
            return Path(self._source).read_bytes()
        context = ssl.create_default_context(cafile=self._ca or None)
        with urllib.request.urlopen(self._source, timeout=_TIMEOUT, context=context) as answer:  # noqa: S310  # https alone, checked by AccessConfig
            if not answer.url.startswith("https://"):
                raise ValueError("redirected away from https")
            raw = read_within(answer, _MOST_BYTES + 1, _TIMEOUT)
        if len(raw) > _MOST_BYTES:
            raise ValueError(f"more than {_MOST_BYTES} bytes")
        return raw
