"""Resolve pyproject.toml into the exact, hashed locks beside this file (`make lock`).

    dev.lock         everything that tests and checks need, torch left out
    worker.lock      what a worker image needs, traces included, torch left out
    router.lock      what a router image needs, traces included
    torch-cpu.lock   torch alone, the CPU build, from a folder of wheels
    torch.lock       torch alone, as the registry has it: on Linux the CUDA build
    torch-cuda.lock  what the CUDA build needs besides
    installer.lock   uv itself
    clients.lock     a client that is tested in an environment of its own: it wants an older `openai` than the others
    triton.lock      the kernel compiler: part of the CUDA build, and of tests, where it interprets

torch stands apart because its builds differ by machine, not by project: a machine without a GPU must not be handed
gigabytes of CUDA because a lock said so. Needs uv; torch-cpu.lock is written when UV_FIND_LINKS names a folder
that holds it, and kept otherwise. Versions already in the locks are kept unless `--upgrade` is given.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
TORCH = "torch==2.13.0"
ROLES = {"dev": ["dev"], "worker": ["worker", "tracing"], "router": ["router", "tracing"]}
ALONE = ("torch", "torch-cpu", "torch-cuda", "installer", "clients")  # locks that no other resolution begins from
CUDA = re.compile(r"(nvidia|cuda)-")
NOT_LINUX = re.compile(r";.*sys_platform == '(win32|emscripten)'")
HEADER = "# Made by `make lock` from pyproject.toml; do not edit. Install with --require-hashes --no-deps.\n"


def resolve(
    extras: list[str], constraints: list[Path], source: str | None = None, find_links: bool = True
) -> list[str]:
    """One block of lock text per package, as uv resolves them for every supported Python on Linux.

    `source` is one requirement to resolve instead of the project's."""
    with tempfile.TemporaryDirectory() as folder:
        torch = Path(folder) / "torch.txt"
        torch.write_text(TORCH + "\n")
        command = [
            "uv",
            "pip",
            "compile",
            "-" if source else str(HERE.parent / "pyproject.toml"),
            "--quiet",
            "--no-config",
        ]
        command += ["--universal", "--python-version", "3.11", "--generate-hashes", "--no-header", "--no-annotate"]
        command += ["--no-emit-index-url", "--no-emit-find-links"]
        for extra in extras:
            command += ["--extra", extra]
        for path in [torch, *constraints]:
            command += ["--constraint", str(path)]
        environment = {k: v for k, v in os.environ.items() if find_links or k != "UV_FIND_LINKS"}
        text = subprocess.run(command, check=True, input=source, env=environment, capture_output=True, text=True).stdout
    blocks = re.findall(r"^\S.*(?:\n    .*)*", text, re.MULTILINE)
    return [block for block in blocks if not NOT_LINUX.search(block.splitlines()[0])]


def name_of(block: str) -> str:
    """
    >>> name_of("torch==2.13.0 ; sys_platform == 'linux' ...")
    'torch'
    """
    return block.split("==")[0]


def is_torch(block: str) -> bool:
    """Whether the package is torch or comes with one of its builds."""
    return name_of(block) in ("torch", "triton") or CUDA.match(block) is not None


def without_marker(block: str) -> str:
    """
    >>> without_marker("a==1 ; python_version < '3.12' \\\\\\n    --hash=x")
    'a==1 \\\\\\n    --hash=x'
    """
    return re.sub(r" ;[^\n\\]*", " ", block, count=1)


def write(name: str, blocks: list[str]) -> None:
    (HERE / f"{name}.lock").write_text(HEADER + "\n".join(blocks) + "\n")
    print(f"requirements/{name}.lock: {len(blocks)} packages")


def main() -> None:
    parser = argparse.ArgumentParser(description="Resolve pyproject.toml into hashed locks.")
    parser.add_argument("--upgrade", action="store_true", help="take the newest versions that fit")
    old = [] if parser.parse_args().upgrade else [path for path in HERE.glob("*.lock") if path.stem not in ALONE]

    everything = resolve(ROLES["dev"], old)
    write("dev", [block for block in everything if not is_torch(block)])
    write("triton", [without_marker(block) for block in everything if name_of(block) == "triton"])
    write("installer", resolve([], [], source="uv"))
    write("clients", resolve([], [], source="llama-index-llms-openai-like>=0.8"))
    published = resolve([], [HERE / "dev.lock", HERE / "triton.lock"], source=TORCH, find_links=False)
    write("torch", [without_marker(block) for block in published if name_of(block) == "torch"])
    if cpu := [without_marker(block) for block in everything if block.startswith(f"{TORCH}+cpu")]:
        write("torch-cpu", cpu)
    write("torch-cuda", [without_marker(block) for block in published if CUDA.match(block)])
    for role in ("worker", "router"):
        blocks = resolve(ROLES[role], [HERE / "dev.lock", HERE / "triton.lock"])
        write(role, [block for block in blocks if not is_torch(block)])


if __name__ == "__main__":
    main()
