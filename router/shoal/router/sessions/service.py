"""Sessions as clients see them: create, get, list, fork, delete."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby

import grpc.aio

from shoal.proto.v1 import inference_pb2 as api
from shoal.proto.v1.inference_pb2_grpc import SessionServiceServicer
from shoal.router.access.caller import current_caller
from shoal.router.errors import FieldError, SessionAbsentError, SessionsAwayError
from shoal.router.inference.conversation import to_message
from shoal.router.inference.resolve import checked_name
from shoal.router.journal.journal import Journal
from shoal.router.sessions.store import NewSession, SessionInfo, SessionStore, StoredItem

_PAGE = 100
_LARGEST_PAGE = 1000
_FRAME, _REST = 6, 512  # bytes around an item in an answer, and beside all of them, at most


@dataclass(frozen=True, slots=True)
class SessionSettings:
    """How sessions are made."""

    ttl_seconds: int
    """How long an idle session is kept when nobody says."""
    max_ttl_seconds: int
    """The longest that a request may ask for."""
    today: Callable[[], str]
    """The date, YYYY-MM-DD."""

    def ttl(self, field: str, asked: int) -> int:
        """What was asked for, or FieldError."""
        if not 1 <= asked <= self.max_ttl_seconds:
            raise FieldError(field, f"must be 1 to {self.max_ttl_seconds}")
        return asked


class SessionService(SessionServiceServicer):
    """Thin: checks the request, asks the store, answers. Errors are translated by the interceptor."""

    def __init__(self, store: SessionStore | None, settings: SessionSettings, journal: Journal | None = None) -> None:
        """`store` and `journal` are None when this router has no Redis."""
        self._store, self._settings, self._journal = store, settings, journal

    async def CreateSession(  # noqa: N802  # the generated base class names it
        self, request: api.CreateSessionRequest, context: grpc.aio.ServicerContext[object, object]
    ) -> api.CreateSessionResponse:
        """An empty session."""
        given = request.HasField("ttl_seconds")
        ttl = self._settings.ttl("ttl_seconds", request.ttl_seconds) if given else self._settings.ttl_seconds
        new = NewSession(ttl, writer=secrets.token_hex(8), date=self._settings.today())
        return api.CreateSessionResponse(session=await self._create("session_id", request.session_id, new))

    async def ForkSession(  # noqa: N802  # the generated base class names it
        self, request: api.ForkSessionRequest, context: grpc.aio.ServicerContext[object, object]
    ) -> api.ForkSessionResponse:
        """A session that begins with the turns of another."""
        name = _name(request.session_id)
        source = await self._sessions().load(current_caller().tenant, name)
        if source is None:
            raise SessionAbsentError(f"there is no session {name!r}")
        before = request.before_turn if request.HasField("before_turn") else source.info.next_turn
        if before > source.info.next_turn:
            raise FieldError("before_turn", f"is {before}, but the session is at turn {source.info.next_turn}")
        given = request.HasField("ttl_seconds")
        ttl = self._settings.ttl("ttl_seconds", request.ttl_seconds) if given else source.info.ttl_seconds
        new = NewSession(
            ttl_seconds=ttl,
            writer=secrets.token_hex(8),
            date=source.info.date,
            next_turn=before,
            items=tuple(item for item in source.items if item.turn < before),
            tools=source.info.tools,
        )
        made = await self._create("new_session_id", request.new_session_id, new)
        return api.ForkSessionResponse(session=made)

    async def GetSession(  # noqa: N802  # the generated base class names it
        self, request: api.GetSessionRequest, context: grpc.aio.ServicerContext[object, object]
    ) -> api.GetSessionResponse:
        """One session with its items."""
        name = _name(request.session_id)
        session = await self._sessions().load(current_caller().tenant, name)
        if session is None:
            raise SessionAbsentError(f"there is no session {name!r}")
        items = [_item(item) for item in session.items if item.turn >= request.from_turn]
        shown, more = fitting(items, request.max_bytes)
        return api.GetSessionResponse(session=_info(session.info), items=shown, more_from_turn=more)

    async def ListSessions(  # noqa: N802  # the generated base class names it
        self, request: api.ListSessionsRequest, context: grpc.aio.ServicerContext[object, object]
    ) -> api.ListSessionsResponse:
        """The caller's sessions, newest first."""
        if request.page_size > _LARGEST_PAGE:
            raise FieldError("page_size", f"is {request.page_size}, at most {_LARGEST_PAGE} are allowed")
        limit = request.page_size or _PAGE
        infos, token = await self._sessions().page(current_caller().tenant, limit, request.page_token)
        return api.ListSessionsResponse(sessions=[_info(info) for info in infos], next_page_token=token)

    async def DeleteSession(  # noqa: N802  # the generated base class names it
        self, request: api.DeleteSessionRequest, context: grpc.aio.ServicerContext[object, object]
    ) -> api.DeleteSessionResponse:
        """Remove one session."""
        name, tenant = _name(request.session_id), current_caller().tenant
        session = await self._sessions().load(tenant, name)
        if session is None or not await self._sessions().delete(tenant, name):
            raise SessionAbsentError(f"there is no session {name!r}")
        if self._journal is not None:  # what its turns said is in there for a while
            for work_id in {item.writer for item in session.items}:
                await self._journal.forget(tenant, work_id)
        return api.DeleteSessionResponse()

    async def _create(self, field: str, given: str, new: NewSession) -> api.SessionInfo:
        name, tenant = checked_name(field, given) or f"session-{secrets.token_hex(12)}", current_caller().tenant
        await self._sessions().create(tenant, name, new)
        made = await self._sessions().load(tenant, name)
        if made is None:
            raise SessionAbsentError(f"session {name!r} was deleted at once")
        return _info(made.info)

    def _sessions(self) -> SessionStore:
        if self._store is None:
            raise SessionsAwayError("this router has no Redis, so it keeps no sessions")
        return self._store


def fitting(items: Sequence[api.SessionItem], max_bytes: int) -> tuple[list[api.SessionItem], int | None]:
    """Items of the first turns with which an answer is no larger, of one at least, and the turn that does not fit any
    more, if there is one. 0: any size.

    >>> said = [api.SessionItem(turn=turn, message=api.Message(content="x" * 100)) for turn in (3, 4, 5)]
    >>> len(fitting(said, 0)[0]), fitting(said, 750)[1], fitting(said, 1)[1], fitting(said, 1000)[1]
    (3, 5, 4, None)
    """
    shown: list[api.SessionItem] = []
    size = _REST
    for turn, group in groupby(items, key=lambda item: item.turn):
        said = list(group)
        size += sum(item.ByteSize() + _FRAME for item in said)
        if max_bytes and shown and size > max_bytes:
            return shown, turn
        shown += said
    return shown, None


def _name(session_id: str) -> str:
    if not session_id:
        raise FieldError("session_id", "is missing")
    return checked_name("session_id", session_id)


def _info(info: SessionInfo) -> api.SessionInfo:
    return api.SessionInfo(
        session_id=info.session_id,
        next_turn=info.next_turn,
        created_at=info.created_at,
        updated_at=info.updated_at,
        expires_in_seconds=info.expires_in,
        bytes=info.bytes,
    )


def _item(item: StoredItem) -> api.SessionItem:
    rendered = item.message.rendered
    ids = rendered.ids if rendered is not None else ()
    return api.SessionItem(message=to_message(item.message), token_ids=ids, turn=item.turn)
