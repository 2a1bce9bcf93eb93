"""Nothing that was promised in the .proto files is taken back."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from google.protobuf.descriptor_pb2 import DescriptorProto, FieldDescriptorProto, FileDescriptorSet

from tests.proto.breaking import breaks, definitions
from tests.proto.image import current, promised


def test_promises_are_kept() -> None:
    """Every message, field, value and method of the committed image is there with its number, name and type."""
    assert breaks(promised(), current()) == []


def test_the_image_is_up_to_date() -> None:
    """What was added since is promised too: run `python -m tests.proto.image`."""
    before, now = promised(), current()

    assert breaks(now, before) == []


def message(files: FileDescriptorSet, name: str) -> DescriptorProto:
    """A message to spoil."""
    found = definitions(files)[f"shoal.proto.v1.{name}"]
    assert isinstance(found, DescriptorProto)
    return found


def _remove_field(files: FileDescriptorSet) -> None:
    del message(files, "Sampling").field[0]


def _renumber(files: FileDescriptorSet) -> None:
    message(files, "Sampling").field[0].number = 99


def _retype(files: FileDescriptorSet) -> None:
    message(files, "Message").field[1].type = FieldDescriptorProto.TYPE_BYTES


def _rename(files: FileDescriptorSet) -> None:
    message(files, "Message").field[1].name = "text"


def _leave_oneof(files: FileDescriptorSet) -> None:
    field = next(f for f in message(files, "ChatResponse").field if f.name == "text")
    field.ClearField("oneof_index")


def _remove_message(files: FileDescriptorSet) -> None:
    message(files, "Usage").name = "Used"


def _remove_value(files: FileDescriptorSet) -> None:
    file = next(f for f in files.file if f.name.endswith("chat.proto"))
    del next(e for e in file.enum_type if e.name == "Role").value[2]


def _stop_streaming(files: FileDescriptorSet) -> None:
    file = next(f for f in files.file if f.name.endswith("inference.proto"))
    file.service[0].method[0].server_streaming = False


@pytest.mark.parametrize(
    "spoil",
    [_remove_field, _renumber, _retype, _rename, _leave_oneof, _remove_message, _remove_value, _stop_streaming],
    ids=lambda spoil: spoil.__name__.strip("_"),
)
def test_what_breaks_is_found(spoil: Callable[[FileDescriptorSet], None]) -> None:
    """Each kind of breaking change is reported."""
    before, after = promised(), promised()
    spoil(after)

    assert breaks(before, after) != []


def test_a_field_may_go_when_it_is_reserved() -> None:
    """Removing a field is no break when its number and name cannot be used again."""
    before, after = promised(), promised()
    spoilt = message(after, "Message")
    gone = spoilt.field[0]
    spoilt.reserved_range.add(start=gone.number, end=gone.number + 1)
    spoilt.reserved_name.append(gone.name)
    del spoilt.field[0]

    assert breaks(before, after) == []
