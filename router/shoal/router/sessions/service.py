"""Sessions as clients see them: get, list, delete."""

from __future__ import annotations

import grpc.aio

from shoal.proto.v1 import inference_pb2 as api
from shoal.proto.v1.inference_pb2_grpc import SessionServiceServicer
from shoal.router.access.caller import current_caller
from shoal.router.errors import FieldError, SessionAbsentError, SessionsAwayError
from shoal.router.inference.conversation import to_message
from shoal.router.inference.resolve import checked_name
from shoal.router.sessions.store import SessionInfo, SessionStore, StoredItem

_PAGE = 100
_LARGEST_PAGE = 1000


class SessionService(SessionServiceServicer):
    """Thin: checks the request, asks the store, answers. Errors are translated by the interceptor."""

    def __init__(self, store: SessionStore | None) -> None:
        """`store` is None when this router has no Redis."""
        self._store = store

    async def GetSession(  # noqa: N802  # the generated base class names it
        self, request: api.GetSessionRequest, context: grpc.aio.ServicerContext[object, object]
    ) -> api.GetSessionResponse:
        """One session with its items."""
        name = _name(request.session_id)
        session = await self._sessions().load(current_caller().tenant, name)
        if session is None:
            raise SessionAbsentError(f"there is no session {name!r}")
        return api.GetSessionResponse(session=_info(session.info), items=[_item(item) for item in session.items])

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
        name = _name(request.session_id)
        if not await self._sessions().delete(current_caller().tenant, name):
            raise SessionAbsentError(f"there is no session {name!r}")
        return api.DeleteSessionResponse()

    def _sessions(self) -> SessionStore:
        if self._store is None:
            raise SessionsAwayError("this router has no Redis, so it keeps no sessions")
        return self._store


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
    )


def _item(item: StoredItem) -> api.SessionItem:
    rendered = item.message.rendered
    ids = rendered.ids if rendered is not None else ()
    return api.SessionItem(message=to_message(item.message), token_ids=ids, turn=item.turn)
