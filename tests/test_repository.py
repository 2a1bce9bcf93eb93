"""What must be true of the repository as a whole."""

from __future__ import annotations

import ast
import doctest
import importlib
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCE_ROOTS = ("cluster", "kernels", "proto", "router", "workers")
GENERATED = re.compile(r"_pb2(_grpc)?\.pyi?$")
LIMIT = 400


def tracked() -> list[Path]:
    """Every file that is, or is about to be, under version control."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return sorted({Path(line) for line in listed.splitlines() if (ROOT / line).is_file()})


def sources() -> list[Path]:
    """Files that people write and read: generated code and locks are not."""
    kinds = {".py", ".pyi", ".cpp", ".h", ".proto", ".toml", ".sh"}
    return [path for path in tracked() if path.suffix in kinds and not GENERATED.search(path.name)]


def test_no_file_is_too_long() -> None:
    """One file, one noun: none passes 400 lines."""
    lengths = {str(path): len((ROOT / path).read_text().splitlines()) for path in sources()}
    assert {} == {path: length for path, length in lengths.items() if length > LIMIT}


def test_the_namespace_has_no_init_file() -> None:
    """One stray __init__.py in a source root or in its `shoal` folder would hide the other four roots."""
    folders = [ROOT / root / below for root in SOURCE_ROOTS for below in (".", "shoal")]
    stray = [folder / "__init__.py" for folder in folders]
    assert [] == [str(path) for path in stray if path.exists()]


def test_no_module_has_a_name_for_anything() -> None:
    """A file is named after its noun; utils, common, helpers and core are not nouns of this project."""
    vague = {"utils", "util", "common", "helpers", "core", "misc"}
    assert [] == [str(path) for path in sources() if path.stem in vague]


def readme_tree() -> list[str]:
    """Paths in the README's tree: the fenced block after `<!-- tree -->`, paths first, then two blanks and words."""
    section = re.search(r"<!-- tree -->\n+```[a-z]*\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
    assert section is not None, "README.md has no fenced block after <!-- tree -->"
    return [path for line in section[1].splitlines() for path in re.split(r" {2,}", line.strip())[0].split()]


def test_the_tree_in_the_readme_is_true() -> None:
    """Everything in it exists, and every folder of ours that holds Python sources is in it."""
    entries = readme_tree()
    assert [] == [path for path in entries if not (ROOT / path).exists()], "listed, but not on disk"
    listed = {path.rstrip("/") for path in entries}
    holding = {str(path.parent) for path in sources() if path.suffix == ".py" and path.parts[0] in SOURCE_ROOTS}
    assert [] == sorted(folder for folder in holding - listed if "/shoal/" in folder), "on disk, but not listed"


def declared(*extras: str) -> set[str]:
    """Names of the distributions that the project asks for with these extras, as they are imported."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = project["dependencies"] + [r for extra in extras for r in project["optional-dependencies"][extra]]
    names = {re.split(r"[\[<>=!~ ;]", requirement)[0].lower() for requirement in wanted}
    imported_as = {"opentelemetry-sdk": "opentelemetry", "protobuf": "google",
                   "grpcio": "grpc", "grpcio-health-checking": "grpc_health", "pyjwt": "jwt",
                   "grpcio-reflection": "grpc_reflection"}  # fmt: skip
    return {imported_as.get(name, name).replace("-", "_") for name in names}


def imports_of(path: Path) -> set[str]:
    """Top-level names that a file imports, wherever in it."""
    names = set()
    for node in ast.walk(ast.parse((ROOT / path).read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names.add((node.module or "").split(".")[0])
    return names


@pytest.mark.parametrize(
    ("root", "extras"),
    [
        ("proto", ("tracing",)),
        ("router", ("router",)),
        ("kernels", ("worker", "gpu")),
        ("workers", ("worker", "gpu")),
        ("cluster", ("worker", "router", "dev")),
    ],
)
def test_every_import_is_declared(root: str, extras: tuple[str, ...]) -> None:
    """A router image has what the extra `router` names and no more; the same for workers."""
    known = declared(*extras) | set(sys.stdlib_module_names) | {"shoal"}
    ours = [path for path in sources() if path.suffix == ".py" and path.parts[:2] == (root, "shoal")]
    undeclared = {f"{path}: {name}" for path in ours for name in imports_of(path) - known}
    assert set() == undeclared


def test_no_lock_names_a_host() -> None:
    """Where packages come from is the machine's business, not the project's."""
    for lock in (ROOT / "requirements").glob("*.lock"):
        assert "://" not in lock.read_text(), lock.name


def modules_with_doctests() -> list[str]:
    """Dotted names of our modules that hold examples."""
    names = []
    for path in sources():
        if path.suffix == ".py" and path.parts[0] in SOURCE_ROOTS and "shoal" in path.parts:
            inside = Path(*path.parts[1:]).with_suffix("")
            if ">>> " in (ROOT / path).read_text():
                names.append(".".join(inside.parts))
    return names


@pytest.mark.parametrize("module", modules_with_doctests())
def test_the_examples_in_docstrings_are_true(module: str) -> None:
    """What a docstring shows is what happens."""
    results = doctest.testmod(importlib.import_module(module))
    assert results.attempted > 0
    assert results.failed == 0
