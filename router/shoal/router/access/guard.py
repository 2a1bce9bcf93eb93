"""The door that asks for credentials, and shows out whose credential was revoked meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any

import structlog

from shoal.router.access.caller import Caller
from shoal.router.access.door import Shown, allowed
from shoal.router.access.key import Key
from shoal.router.access.keyring import Keyring, ends_of
from shoal.router.access.token import TOKEN_PREFIX, Tokens
from shoal.router.errors import CredentialError, CredentialsAwayError

_RETRY_AFTER_MS = 1_000
_UNKNOWN = "the credential is not known, or does not count any more"

_ENDED = "the credential was revoked, or expired, while this was served"
_AGAIN = 2.0  # seconds that what was told to end gets for its last words

_log = structlog.get_logger(__name__)


@dataclass(eq=False, slots=True)
class _Served:
    """A request that is being served, by `task`."""

    caller: Caller
    task: asyncio.Task[Any]
    told: int = 0
    """How often the task was told to end."""
    told_at: float = 0.0


class Guard:
    """A `Door` for API keys, tokens and certificates. Belongs to one event loop."""

    def __init__(self, keyring: Keyring, tokens: Tokens | None, now: Callable[[], float]) -> None:
        """`tokens` None: they are not believed. `now` is unix time."""
        self.keyring, self._tokens, self._now = keyring, tokens, now
        self._served: set[_Served] = set()

    async def admit(self, shown: Shown, method: str) -> Caller:
        """See `Door`."""
        return allowed(await self.identify(shown), method)

    async def identify(self, shown: Shown) -> Caller:
        """Who it is. What is sent with the request counts before the connection's certificate.

        Raises CredentialError, and CredentialsAwayError while nobody can be known.
        """
        if shown.authorization:
            scheme, _, credential = shown.authorization.partition(" ")
            credential = credential.strip()
            if scheme.lower() != "bearer" or not credential:
                raise CredentialError("the authorization must be: Bearer, a blank, and an API key or a token")
            if credential.startswith("shk_"):
                return self._counting(self.keyring.of_secret(credential))
            if self._tokens is None or credential.count(".") != 2:
                raise CredentialError(_UNKNOWN)
            return await self._tokens.caller(credential)
        if shown.certificate:
            caller = self._counting(self.keyring.of_certificate(shown.certificate))
            if (ends := ends_of(shown.certificate)) <= self._now():
                raise CredentialError(_UNKNOWN)  # it expired on a connection that goes on
            return replace(caller, expires=ends)
        raise CredentialError("a credential is needed: send an API key or a token as `authorization: Bearer …`")

    def _counting(self, key: Key | None) -> Caller:
        if key is not None and key.holds(self._now()):
            return key.caller
        if not self.keyring.complete:
            raise CredentialsAwayError("keys cannot be read now: ask again", retry_after_ms=_RETRY_AFTER_MS)
        raise CredentialError(_UNKNOWN)

    def key_of(self, caller: Caller) -> Key | None:
        """See `Door`."""
        return self.keyring.get(caller.key_id)

    def require(self, caller: Caller) -> None:
        """See `Door`."""
        if not self._counts(caller, self._now()):
            raise CredentialError(_ENDED)

    @asynccontextmanager
    async def served(self, caller: Caller) -> AsyncGenerator[None, None]:
        """What runs inside ends with CredentialError when the key is revoked, or key, token or certificate expire."""
        task = asyncio.current_task()
        assert task is not None, "a request is served by a task"
        entry, before = _Served(caller, task), task.cancelling()
        self._served.add(entry)
        try:
            yield
        except asyncio.CancelledError:
            if not entry.told or _taken_back(entry) > before:  # somebody else cancelled it, too
                raise
            raise CredentialError(_ENDED) from None
        finally:
            self._served.discard(entry)
            _taken_back(entry)

    async def watch(self, period: float) -> None:
        """Look for changed keys every `period` seconds, for ever."""
        while True:
            try:
                await self.keyring.refresh()
                self.show_out()
            except Exception:  # whatever it is, keys that are revoked later must be seen
                _log.exception("keys_not_looked_at")
            await asyncio.sleep(period)

    def show_out(self) -> None:
        """End what is served to credentials that do not count any more. Told once it may not hear: a client of Redis in
        the middle of a call takes that for an error of its connection, and asks again."""
        now, moment = self._now(), asyncio.get_running_loop().time()
        for entry in list(self._served):
            if (entry.told and moment - entry.told_at < _AGAIN) or self._counts(entry.caller, now):
                continue
            entry.told, entry.told_at = entry.told + 1, moment
            entry.task.cancel()
            _log.info("credential_ended_while_served", key=entry.caller.key_id, times=entry.told)

    def _counts(self, caller: Caller, now: float) -> bool:
        if caller.expires and now >= caller.expires:
            return False
        if caller.key_id.startswith(TOKEN_PREFIX):
            return True
        key = self.keyring.get(caller.key_id)
        return key is not None and key.holds(now)


def _taken_back(entry: _Served) -> int:
    """How often its task was told to end by others."""
    while entry.told:
        entry.told -= 1
        entry.task.uncancel()
    return entry.task.cancelling()
