"""The .proto files keep buf's STANDARD rules and comment on everything; checked here so that nobody needs buf."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Any

import pytest
from google.protobuf.descriptor_pb2 import EnumDescriptorProto, FileDescriptorProto

from tests.proto.image import current

PASCAL = re.compile(r"([A-Z][a-z0-9]*)+")
SNAKE = re.compile(r"[a-z][a-z0-9]*(_[a-z0-9]+)*")
REEXPORTS = "shoal/proto/v1/inference.proto"
"""Imports publicly, so that clients have the whole API under one name; the one exception."""

FILES = list(current().file)
EACH_FILE = pytest.mark.parametrize("file", FILES, ids=[PurePosixPath(file.name).name for file in FILES])


def parts(file: FileDescriptorProto) -> Iterator[tuple[tuple[int, ...], str, Any]]:
    """Path in the source, full name and descriptor of everything that has a name."""

    def of_message(path: tuple[int, ...], name: str, message: Any) -> Iterator[tuple[tuple[int, ...], str, Any]]:
        yield path, name, message
        for i, field in enumerate(message.field):
            yield (*path, 2, i), f"{name}.{field.name}", field
        for i, nested in enumerate(message.nested_type):
            if not nested.options.map_entry:
                yield from of_message((*path, 3, i), f"{name}.{nested.name}", nested)
        for i, enum in enumerate(message.enum_type):
            yield from of_enum((*path, 4, i), f"{name}.{enum.name}", enum)

    def of_enum(path: tuple[int, ...], name: str, enum: Any) -> Iterator[tuple[tuple[int, ...], str, Any]]:
        yield path, name, enum
        for i, value in enumerate(enum.value):
            yield (*path, 2, i), f"{name}.{value.name}", value

    for i, message in enumerate(file.message_type):
        yield from of_message((4, i), message.name, message)
    for i, enum in enumerate(file.enum_type):
        yield from of_enum((5, i), enum.name, enum)
    for i, service in enumerate(file.service):
        yield (6, i), service.name, service
        for k, method in enumerate(service.method):
            yield (6, i, 2, k), f"{service.name}.{method.name}", method


def enums(file: FileDescriptorProto) -> list[EnumDescriptorProto]:
    """All enums of a file."""
    return [part for _, _, part in parts(file) if isinstance(part, EnumDescriptorProto)]


@EACH_FILE
def test_everything_is_commented(file: FileDescriptorProto) -> None:
    """Each message, field, enum, value, service and method has a comment before it."""
    commented = {tuple(l.path) for l in file.source_code_info.location if l.leading_comments.strip()}  # noqa: E741  # one line

    assert [name for path, name, _ in parts(file) if path not in commented] == []


@EACH_FILE
def test_files_lie_where_their_package_says(file: FileDescriptorProto) -> None:
    """Package with a version, directory like the package, proto3, a name in lower_snake_case."""
    path = PurePosixPath(file.name)

    assert str(path.parent).replace("/", ".") == file.package
    assert re.fullmatch(r"v[1-9]\d*", path.parent.name)
    assert file.syntax == "proto3"
    assert SNAKE.fullmatch(path.stem)


@EACH_FILE
def test_imports_are_plain(file: FileDescriptorProto) -> None:
    """No weak imports, and public ones only where clients are spared several names."""
    assert list(file.weak_dependency) == []
    assert file.name == REEXPORTS or list(file.public_dependency) == []


@EACH_FILE
def test_names_are_in_their_case(file: FileDescriptorProto) -> None:
    """Types and methods in PascalCase, fields and oneofs in lower_snake_case."""
    for _, name, part in parts(file):
        kind = type(part).__name__
        if kind == "FieldDescriptorProto":
            assert SNAKE.fullmatch(part.name), name
        elif kind != "EnumValueDescriptorProto":
            assert PASCAL.fullmatch(part.name), name
        for oneof in getattr(part, "oneof_decl", ()):
            assert SNAKE.fullmatch(oneof.name.removeprefix("_")), f"{name}.{oneof.name}"


@EACH_FILE
def test_enum_values_carry_the_enums_name(file: FileDescriptorProto) -> None:
    """FINISH_REASON_STOP in FinishReason; 0 means nothing was said; no two names for one number."""
    for enum in enums(file):
        prefix = re.sub(r"(?<!^)(?=[A-Z])", "_", enum.name).upper() + "_"
        assert [v.name for v in enum.value if not re.fullmatch(rf"{prefix}[A-Z0-9_]+", v.name)] == []
        assert [v.name for v in enum.value if v.number == 0] == [f"{prefix}UNSPECIFIED"]
        assert len({v.number for v in enum.value}) == len(enum.value)


def test_services_and_their_messages_are_named_after_each_other() -> None:
    """Services end in Service; a method has its own request and response, named after it."""
    taken: set[str] = set()
    for file in FILES:
        for service in file.service:
            assert service.name.endswith("Service")
            for method in service.method:
                expected = {f".{file.package}.{method.name}{end}" for end in ("Request", "Response")}
                assert {method.input_type, method.output_type} == expected
                assert not expected & taken
                taken |= expected
