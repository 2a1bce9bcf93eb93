"""The images' instructions carried out and compose.yaml's services run in them, without a container engine.

    unshare --mount python -m tests.deploy.up FOLDER CHECKPOINT

Each target of the Dockerfile is built in a root file system of its own: a layer over this machine's, in the place of
the base image; torch is its CPU build. Then Redis, workers and router of the profile `cpu` run as compose.yaml says, as
user 10001, without a capability, nothing but /tmp to write to, in a network of their own; their health checks are
asked, and a chat. Prints what it does and, as its last line, a JSON object of what it saw.
"""

from __future__ import annotations

import ctypes
import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from tests.deploy.chroot import inside, mount, prepare
from tests.deploy.dockerfile import Stage, build
from tests.e2e.rendered import REDIS_PORT, loopback_up, say, until

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
GIVEN = {"SHOAL_SECRET": "ab" * 32, "EP_SIZE": "2", "MAX_CONCURRENT_REQUESTS": "64", "QUANTIZATION": "mxfp4-int8"}


def filled(text: str) -> str:
    """Variables as compose fills them in."""

    def value(match: re.Match[str]) -> str:
        return GIVEN.get(match[1], (match[2] or "").removeprefix(":-"))

    return re.sub(r"\$\{([A-Z_]+)(:[-?][^}]*)?\}", value, text).replace("$$", "$")


@dataclass
class Container:
    """One service of compose.yaml in its image."""

    name: str
    said: dict[str, Any]
    image: Stage
    root: Path
    process: subprocess.Popen[bytes] | None = None

    def prepare(self, checkpoint: Path) -> None:
        """Its root, read-only, with volumes and secrets."""
        (self.image.layer.written / "models/checkpoint").mkdir(parents=True, exist_ok=True)
        [tmp] = self.said["tmpfs"]  # to what an engine mounts a tmpfs with, its options are added
        self.image.layer.closed(self.root, f"noexec,nosuid,nodev,{tmp.removeprefix('/tmp:')}")
        mount("--bind", str(checkpoint), str(self.root / "models/checkpoint"))
        for volume in self.said.get("volumes", []):
            if not volume.startswith("$"):  # one of the engine's: a new one belongs to whom the image says
                place = self.root / volume.partition(":")[2].removeprefix("/")
                owner = place.stat()
                options = f"uid={owner.st_uid},gid={owner.st_gid}"
                mount("-t", "tmpfs", "-o", options, "tmpfs", str(place))

    def line(self, command: list[str]) -> list[str]:
        """`command` as it runs in there."""
        told = {name: filled(str(value)) for name, value in self.said.get("environment", {}).items()}
        # One network for all: compose's names are this machine's, and Redis leaves its port to Ray.
        told = {name: re.sub(r"@(redis|127.0.0.1):6379", f"@127.0.0.1:{REDIS_PORT}", value)
                for name, value in told.items()}  # fmt: skip
        environment = {**self.image.environment, **told}
        return inside(self.root, self.said["user"], "/", [filled(word) for word in command], environment)

    def start(self, log: Path) -> None:
        """In the background."""
        command = list(self.said["command"])
        if self.name == "redis":
            command[-1] += f" --port={REDIS_PORT}"
        say(f"{self.name}: {' '.join(command)}")
        with log.open("wb") as file:
            self.process = subprocess.Popen(self.line(command), stdin=subprocess.DEVNULL, stdout=file, stderr=file)

    def healthy(self) -> bool:
        """What its health check says."""
        return self.run(self.said["healthcheck"]["test"][1:]).returncode == 0

    def run(self, command: list[str]) -> subprocess.CompletedProcess[str]:
        """A command in it, to its end."""
        return subprocess.run(self.line(command), capture_output=True, text=True, check=False, timeout=120)


@dataclass
class Seen:
    """What was seen."""

    build_seconds: float = 0.0
    chat: int = -1
    answer: str = ""
    exits: dict[str, int] = field(default_factory=dict)
    packages: dict[str, list[str]] = field(default_factory=dict)
    outside: list[str] = field(default_factory=list)
    """What could be written to besides /tmp and volumes."""
    login_path: str = ""
    autoscaler: str = ""
    """What the worker's image says when Ray's autoscaler for Kubernetes is loaded: nothing, if it can be."""


def services() -> Iterator[tuple[str, dict[str, Any]]]:
    """Of the profile cpu, in the order in which they depend on each other."""
    composed: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]
    for name in ("redis", "workers-cpu", "router-cpu"):
        yield name, composed[name]


def run(folder: Path, checkpoint: Path, images: dict[str, Stage], seen: Seen) -> None:
    """Everything up, asked, and down again."""
    containers = {name: Container(name, said, images[said["build"]["target"]], folder / "run" / name)
                  for name, said in services()}  # fmt: skip
    for container in containers.values():
        container.prepare(checkpoint)
        container.start(folder / f"{container.name}.log")
    for name, container in containers.items():
        until(f"{name} is healthy", container.healthy)
    router, workers = containers["router-cpu"], containers["workers-cpu"]
    done = router.run(["shoal", "chat", "--address=127.0.0.1:50051", "--once=What is a shoal?", "--max-tokens=16"])
    say(done.stdout + done.stderr)
    seen.chat, seen.answer = done.returncode, done.stdout
    for place in ("/", "/opt/shoal", "/etc", "/models/checkpoint", "/usr/bin"):
        if workers.run(["touch", f"{place}/written"]).returncode == 0:
            seen.outside.append(place)
    seen.login_path = workers.run(["bash", "-lc", "command -v ray shoal"]).stdout
    needed = "ray.autoscaler._private.kuberay.run_autoscaler", "ray.autoscaler.v2.monitor"
    seen.autoscaler = workers.run(["python", "-c", f"import {', '.join(needed)}"]).stderr
    for name, container in reversed(containers.items()):
        assert container.process is not None, name
        container.process.terminate()
        seen.exits[name] = container.process.wait(90)
        say(f"  {name} ended with {seen.exits[name]}")


def main() -> int:
    """The last line is what was seen."""
    folder, checkpoint = Path(sys.argv[1]), Path(sys.argv[2])
    seen = Seen()
    prepare(folder)
    began = time.monotonic()
    images = build(DEPLOY / "Dockerfile", ROOT, folder / "layers", {"TORCH": "cpu"})
    seen.build_seconds = round(time.monotonic() - began, 1)
    say(f"built {', '.join(images)} in {seen.build_seconds} s")
    for target in ("router", "worker"):
        bill = json.loads((images[target].layer.root / "opt/shoal/sbom.json").read_text())
        seen.packages[target] = sorted(part["name"].lower() for part in bill["components"])
    unshare_network()
    loopback_up()
    try:
        run(folder, checkpoint, images, seen)
    except BaseException:
        for log in folder.glob("*.log"):
            print(f"== {log.name}\n{log.read_text(errors='replace')[-2500:]}", file=sys.stderr)
        raise
    print(json.dumps({name: getattr(seen, name) for name in Seen.__dataclass_fields__}))
    return 0


def unshare_network() -> None:
    """From here on this process has a network of its own. Raises OSError."""
    if ctypes.CDLL(None, use_errno=True).unshare(0x40000000):  # CLONE_NEWNET; Python 3.11 has no word for it
        raise OSError(ctypes.get_errno(), "no network namespace")


if __name__ == "__main__":
    sys.exit(main())
