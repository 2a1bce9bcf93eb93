"""Root file systems of their own without a container engine: layers over this machine's, kept in memory.

Needs root and a mount namespace (`unshare --mount`), with which everything here goes away.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

DEVICES = ("null", "zero", "full", "random", "urandom", "tty")


def mount(*arguments: str) -> None:
    """Raises subprocess.CalledProcessError."""
    subprocess.run(["mount", *arguments], check=True, capture_output=True, text=True)


def prepare(folder: Path) -> None:
    """Keep later mounts to ourselves, and `folder` in memory: a layer must not lie below what it covers."""
    mount("--make-rprivate", "/")
    mount("-t", "tmpfs", "-o", "mode=755", "tmpfs", str(folder))


@dataclass(frozen=True, slots=True)
class Layer:
    """What was written over this machine's root."""

    folder: Path

    @property
    def written(self) -> Path:
        """Only that."""
        return self.folder / "written"

    @property
    def root(self) -> Path:
        """All of it, where it is mounted to be written to."""
        return self.folder / "root"

    def open(self) -> None:
        """Mount it to be written to."""
        for name in ("written", "work", "root"):
            (self.folder / name).mkdir(parents=True)
        layers = f"lowerdir=/,upperdir={self.written},workdir={self.folder / 'work'}"
        mount("-t", "overlay", "overlay", "-o", layers, str(self.root))
        self.system(self.root)

    def closed(self, root: Path, tmp: str) -> None:
        """Mount it at `root`, where nobody can write to it; /tmp is new and empty, mounted with the options `tmp`."""
        root.mkdir(parents=True)
        mount("-t", "overlay", "overlay", "-o", f"lowerdir={self.written}:/", str(root))
        self.system(root)
        mount("-t", "tmpfs", "-o", tmp, "tmpfs", str(root / "tmp"))

    @staticmethod
    def system(root: Path) -> None:
        """/proc and the usual devices."""
        mount("-t", "proc", "proc", str(root / "proc"))
        mount("-t", "tmpfs", "-o", "mode=755", "tmpfs", str(root / "dev"))
        for name in DEVICES:
            (root / "dev" / name).touch()
            mount("--bind", f"/dev/{name}", str(root / "dev" / name))
        (root / "dev/fd").symlink_to("/proc/self/fd")
        (root / "dev/shm").mkdir()
        mount("-t", "tmpfs", "-o", "mode=1777", "tmpfs", str(root / "dev/shm"))


def inside(root: Path, user: str, folder: str, command: Sequence[str], environment: Mapping[str, str]) -> list[str]:
    """The command line that runs `command` there: as `user` without any capability, or as root with all."""
    variables = [f"{name}={value}" for name, value in environment.items()]
    bare = ["env", "-i", "-C", folder, *variables, *command]
    if user != "0":
        who, _, group = user.partition(":")
        bare = ["setpriv", f"--reuid={who}", f"--regid={group or who}", "--clear-groups", "--no-new-privs",
                "--bounding-set=-all", "--inh-caps=-all", *bare]  # fmt: skip
    return ["chroot", str(root), *bare]


def copy(source: Path, target: Path) -> None:
    """As COPY does: a directory's content, or a file."""
    if source.is_dir():
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(source, target, symlinks=True, dirs_exist_ok=True, ignore=ignored)
    else:
        if target.is_dir():
            target = target / source.name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(source, target)
