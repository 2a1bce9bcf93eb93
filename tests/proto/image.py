"""The .proto files as descriptors: as they are now, and as they were promised to be.

python -m tests.proto.image      promise what is there now: writes `image.textproto`, after a change that breaks nobody
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

from google.protobuf import text_format
from google.protobuf.descriptor_pb2 import FileDescriptorProto, FileDescriptorSet

PROTO = Path(__file__).resolve().parents[2] / "proto"
IMAGE = Path(__file__).with_name("image.textproto")


def current() -> FileDescriptorSet:
    """All files with their comments, as protoc reads them."""
    sources = sorted(str(path.relative_to(PROTO)) for path in PROTO.rglob("*.proto"))
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "image"
        command = [sys.executable, "-m", "grpc_tools.protoc", "-I", ".", f"--descriptor_set_out={out}"]
        subprocess.run([*command, "--include_source_info", *sources], cwd=PROTO, check=True)
        return FileDescriptorSet.FromString(out.read_bytes())


def promised() -> FileDescriptorSet:
    """What was promised last."""
    return text_format.Parse(IMAGE.read_text(), FileDescriptorSet())


def main() -> None:
    """Write the image, without comments and places."""
    files = current()
    for file in files.file:
        file.ClearField("source_code_info")
        for name in ("message_type", "enum_type", "service"):
            _sort(file, name)
    IMAGE.write_text(text_format.MessageToString(files))


def _sort(file: FileDescriptorProto, name: str) -> None:
    """By name, so that moving a message moves nothing in the image."""
    getattr(file, name).sort(key=lambda item: item.name)


if __name__ == "__main__":
    main()
