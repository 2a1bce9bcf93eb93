"""What would break somebody who speaks an older version: the rules that buf calls WIRE_JSON. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    EnumDescriptorProto,
    FieldDescriptorProto,
    FileDescriptorSet,
    ServiceDescriptorProto,
)

Definition = DescriptorProto | EnumDescriptorProto | ServiceDescriptorProto


def definitions(files: FileDescriptorSet) -> dict[str, Definition]:
    """Messages, enums and services by full name, nested ones too; in which file they are is nobody's business."""
    found: dict[str, Definition] = {}

    def walk(prefix: str, scope: Any, messages: Any) -> None:
        for enum in scope.enum_type:
            found[f"{prefix}.{enum.name}"] = enum
        for message in messages:
            found[f"{prefix}.{message.name}"] = message
            walk(f"{prefix}.{message.name}", message, message.nested_type)

    for file in files.file:
        walk(file.package, file, file.message_type)
        for service in file.service:
            found[f"{file.package}.{service.name}"] = service
    return found


def breaks(before: FileDescriptorSet, after: FileDescriptorSet) -> list[str]:
    """A line for each promise that `after` does not keep."""
    now = definitions(after)
    problems = []
    for name, old in definitions(before).items():
        new = now.get(name)
        if type(new) is not type(old):
            problems.append(f"{name} vanished")
        elif isinstance(old, DescriptorProto) and isinstance(new, DescriptorProto):
            problems += _message(name, old, new)
        elif isinstance(old, EnumDescriptorProto) and isinstance(new, EnumDescriptorProto):
            problems += _enum(name, old, new)
        elif isinstance(old, ServiceDescriptorProto) and isinstance(new, ServiceDescriptorProto):
            problems += _service(name, old, new)
    return problems


def _message(name: str, old: DescriptorProto, new: DescriptorProto) -> Iterator[str]:
    fields = {field.number: field for field in new.field}
    for field in old.field:
        found = fields.get(field.number)
        place = f"{name}.{field.name}"
        if found is None:
            ranges = any(r.start <= field.number < r.end for r in new.reserved_range)
            if not ranges or field.name not in new.reserved_name:
                yield f"{place} vanished: reserve its number {field.number} and its name"
        elif found.name != field.name:
            yield f"{place} is now called {found.name}: JSON knows it by its name"
        elif _kind(found) != _kind(field):
            yield f"{place} has another type"
        elif _oneof(found, new) != _oneof(field, old):
            yield f"{place} moved into or out of a oneof"


def _kind(field: FieldDescriptorProto) -> tuple[int, int, str]:
    return field.type, field.label, field.type_name


def _oneof(field: FieldDescriptorProto, message: DescriptorProto) -> str:
    if not field.HasField("oneof_index"):
        return ""
    return "optional" if field.proto3_optional else message.oneof_decl[field.oneof_index].name


def _enum(name: str, old: EnumDescriptorProto, new: EnumDescriptorProto) -> Iterator[str]:
    values = {value.number: value.name for value in new.value}
    for value in old.value:
        if value.number not in values:
            ranges = any(r.start <= value.number <= r.end for r in new.reserved_range)
            if not ranges or value.name not in new.reserved_name:
                yield f"{name}.{value.name} vanished: reserve its number {value.number} and its name"
        elif values[value.number] != value.name:
            yield f"{name}.{value.name} is now called {values[value.number]}"


def _service(name: str, old: ServiceDescriptorProto, new: ServiceDescriptorProto) -> Iterator[str]:
    methods = {method.name: method for method in new.method}
    for method in old.method:
        found = methods.get(method.name)
        if found is None:
            yield f"{name}.{method.name} vanished"
        elif (found.input_type, found.output_type) != (method.input_type, method.output_type):
            yield f"{name}.{method.name} has another request or response"
        elif (found.client_streaming, found.server_streaming) != (method.client_streaming, method.server_streaming):
            yield f"{name}.{method.name} streams otherwise"
