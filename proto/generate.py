"""Generate Python from the .proto files beside this one, or check that what is committed is what they generate.

python proto/generate.py           write the generated files
python proto/generate.py --check   exit with 1 and name the files that differ
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent
GENERATED = ("*_pb2.py", "*_pb2.pyi", "*_pb2_grpc.py", "*_pb2_grpc.pyi")


def generate(out: Path) -> None:
    """Run protoc with the four plugins; it raises CalledProcessError when a .proto file is wrong."""
    sources = sorted(str(path.relative_to(ROOT)) for path in ROOT.rglob("*.proto"))
    outputs = [f"--{plugin}_out={out}" for plugin in ("python", "grpc_python", "mypy", "mypy_grpc")]
    command = [sys.executable, "-m", "grpc_tools.protoc", "-I", ".", *outputs, *sources]
    # protoc finds the mypy plugins on PATH: they are installed beside the interpreter.
    environment = {"PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin"}
    # The plugins list on stderr what they write, hundreds of lines: shown only when something is wrong.
    run = subprocess.run(command, cwd=ROOT, env=environment, check=False, stderr=subprocess.PIPE, text=True)
    if run.returncode:
        sys.exit(f"protoc failed:\n{run.stderr}")


def contents(folder: Path) -> dict[str, bytes]:
    """Generated files below `folder` by relative path."""
    return {str(p.relative_to(folder)): p.read_bytes() for pattern in GENERATED for p in folder.rglob(pattern)}


def main() -> None:
    parser = argparse.ArgumentParser(description="Generate Python from the .proto files.")
    parser.add_argument("--check", action="store_true", help="compare instead of writing")
    if not parser.parse_args().check:
        generate(ROOT)
        return
    with tempfile.TemporaryDirectory() as folder:
        generate(Path(folder))
        wanted, found = contents(Path(folder)), contents(ROOT)
    stale = sorted(name for name in wanted | found if wanted.get(name) != found.get(name))
    if stale:
        sys.exit(f"Generated code is out of date, run `make proto`: {', '.join(stale)}")
    print(f"{len(found)} generated files are up to date")


if __name__ == "__main__":
    main()
