"""Messages as they are kept: in a session, and in the record of a running request."""

from __future__ import annotations

from typing import get_args

from shoal.proto.v1 import inference_pb2 as api
from shoal.proto.v1.journal_pb2 import KeptMessage, KeptPiece
from shoal.router.harmony.message import ChatMessage, Rendered, Role
from shoal.router.sessions.store import StoredItem

_NUMBERS = {role: api.Role.Value(f"ROLE_{role.upper()}") for role in get_args(Role)}
_ROLES = {number: role for role, number in _NUMBERS.items()}


def keep_piece(rendered: Rendered) -> KeptPiece:
    """Ids as they are kept."""
    return KeptPiece(
        ids=rendered.ids, generated_first=rendered.first, generated_last=rendered.last, lasting=rendered.lasting
    )


def kept_piece(piece: KeptPiece) -> Rendered:
    """What `keep_piece` kept."""
    return Rendered(tuple(piece.ids), piece.generated_first, piece.generated_last, piece.lasting)


def keep_message(message: ChatMessage, turn: int = 0, work_id: str = "") -> KeptMessage:
    """A rendered message as it is kept."""
    assert message.rendered is not None, "only rendered messages are kept"
    said = api.Message(
        role=_NUMBERS[message.role],
        content=message.content,
        channel=message.channel,
        name=message.name,
        recipient=message.recipient,
        call_id=message.call_id,
        content_type=message.content_type,
    )
    return KeptMessage(message=said, piece=keep_piece(message.rendered), turn=turn, work_id=work_id)


def kept_message(kept: KeptMessage) -> ChatMessage:
    """What `keep_message` kept."""
    said = kept.message
    return ChatMessage(
        role=_ROLES[said.role],
        content=said.content,
        channel=said.channel,
        recipient=said.recipient,
        name=said.name,
        call_id=said.call_id,
        content_type=said.content_type,
        rendered=kept_piece(kept.piece),
    )


def encode(item: StoredItem) -> bytes:
    """An item of a session."""
    return keep_message(item.message, item.turn, item.writer).SerializeToString()


def decode(raw: bytes) -> StoredItem:
    """What `encode` made."""
    kept = KeptMessage.FromString(raw)
    return StoredItem(kept_message(kept), kept.turn, kept.work_id)
