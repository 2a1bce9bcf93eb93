"""The `shoal` command as a process: exit codes, one-line errors, and what it does without torch and ray."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from shoal.cluster.cli import main
from shoal.cluster.commands import stop
from tests.router.byte_tokenizer import write_tokenizer

Refused = Callable[..., tuple[int, str]]

BLOCKED = """
import sys
for name in ("torch", "ray", "triton", "transformers"):
    sys.modules[name] = None  # importing it raises ImportError, as if it were not installed
sys.argv = ["shoal", *sys.argv[1:]]
from shoal.cluster.cli import main
main()
"""


def environment(tmp_path: Path, **more: str) -> dict[str, str]:
    """Ours without settings, with a state directory of the test's own."""
    clean = {key: value for key, value in os.environ.items() if not key.startswith("SHOAL_")}
    return {**clean, "XDG_STATE_HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path), "COLUMNS": "200", **more}


def shoal(tmp_path: Path, *arguments: str, blocked: bool = False, **more: str) -> subprocess.CompletedProcess[str]:
    """Run the command to its end."""
    start = ["-c", BLOCKED] if blocked else ["-m", "shoal.cluster.cli"]
    return subprocess.run(
        [sys.executable, *start, *arguments],
        env=environment(tmp_path, **more), capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


@pytest.fixture
def refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Refused:
    """Runs the command in this process (each import once) and gives its exit code and the one line of its error."""
    for key in [key for key in os.environ if key.startswith("SHOAL_")]:
        monkeypatch.delenv(key)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))

    def run(*arguments: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["shoal", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        lines = capsys.readouterr().err.strip().splitlines()
        assert len(lines) == 1, lines
        assert isinstance(ended.value.code, int)
        return ended.value.code, lines[0]

    return run


@pytest.mark.parametrize(
    ("arguments", "code", "expected"),
    [
        (["serve"], 2, "shoal: cluster.model is missing: name a checkpoint directory, for instance with --model DIR"),
        (["serve", "--ep-size", "0"], 2, "shoal: cluster.ep_size must be 1 to 256, not 0 (from the command line)"),
        (["serve", "--set", "worker.thread=1"], 2, "did you mean 'threads'?"),
        (["serve", "--model", "/nowhere"], 1, "shoal: /nowhere: not a checkpoint directory"),
        (["serve", "-c", "/nowhere.toml"], 2, "shoal: /nowhere.toml: cannot be read: No such file or directory"),
        (["router", "--model-dir", "/nowhere"], 1, "shoal: /nowhere/tokenizer.json cannot be read"),
        (["router"], 2, "shoal: router.model_dir is missing"),
        (["status"], 3, "start one with `shoal serve`"),
        (["stop"], 3, "shoal: no cluster runs from "),
        (["chat", "--once", "hi", "--address", "127.0.0.1:9"], 4, "shoal: no router answers at 127.0.0.1:9"),
        (["demo", "--preset", "huge"], 2, "huge"),
    ],
)
def test_an_error_is_one_line_and_an_exit_code(
    refused: Refused, arguments: list[str], code: int, expected: str
) -> None:
    """What, where, what to do; no stack trace."""
    found, line = refused(*arguments)
    assert code == found, line
    assert expected in line


def test_a_wrong_variable_is_named(refused: Refused, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bad value in the environment says which variable."""
    monkeypatch.setenv("SHOAL_CLUSTER__GROUPS", "none")
    expected = "shoal: cluster.groups must be an integer, not 'none' (from SHOAL_CLUSTER__GROUPS)"
    assert refused("serve", "--model", "x") == (2, expected)


def test_more_ranks_than_experts_are_refused_before_anything_starts(refused: Refused, tiny_model: Path) -> None:
    """The checkpoint says how many experts there are."""
    code, line = refused("serve", "--model", str(tiny_model), "--ep-size", "99")
    assert code == 2
    assert "cluster.ep_size is 99, but the model has only 8 experts" in line


def test_a_mistake_of_ours_is_one_line_too(refused: Refused, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever nobody foresaw names itself, says how to see more, and has an exit code of its own."""

    def explode(settings: object, now: bool) -> None:
        raise KeyError("oops")

    monkeypatch.setattr(stop, "run", explode)
    assert refused("stop") == (70, "shoal: internal error: KeyError: 'oops' (shoal --debug shows where)")


def test_debug_shows_the_trace(tmp_path: Path) -> None:
    """With --debug the error comes with its stack."""
    assert "Traceback" in shoal(tmp_path, "--debug", "stop").stderr


@pytest.mark.parametrize("arguments", [["--help"], ["version"], ["chat", "--help"], ["router", "--help"]])
def test_help_and_version_need_neither_torch_nor_ray(tmp_path: Path, arguments: list[str]) -> None:
    """Imports are lazy."""
    result = shoal(tmp_path, *arguments, blocked=True)
    assert (result.returncode, result.stderr) == (0, "")


def test_version_tells_what_results_depend_on(tmp_path: Path) -> None:
    """Ours and the parts that matter, whether they are installed or not."""
    lines = shoal(tmp_path, "version").stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["shoal", "python", "torch", "triton", "ray", "grpcio", "redis"]


def test_router_and_chat_run_without_torch_and_ray(tmp_path: Path, tiny_model: Path) -> None:
    """A router image has neither; it starts, answers a chat (that there are no workers), and stops on SIGTERM."""
    ready = tmp_path / "ready.json"
    settings = [
        "router.port=0",
        "router.http_port=0",
        "router.metrics_port=-1",
        "router.worker_wait_seconds=0.1",
        f"router.ready_file={ready}",
    ]
    command = [sys.executable, "-c", BLOCKED, "router", "--model-dir", str(tiny_model)]
    router = subprocess.Popen(
        [*command, *(part for setting in settings for part in ("--set", setting))],
        env=environment(tmp_path), stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        give_up = time.monotonic() + 30
        while not ready.exists() and time.monotonic() < give_up and router.poll() is None:
            time.sleep(0.05)
        address = json.loads(ready.read_text())["address"]
        chat = shoal(tmp_path, "chat", "--once", "hi", "--address", address, blocked=True)
        assert chat.returncode == 4
        assert "shoal: UNAVAILABLE: " in chat.stderr
        router.send_signal(signal.SIGTERM)
        assert router.wait(15) == 0
    finally:
        router.kill()
        errors = router.communicate()[1]
    events = [json.loads(line) for line in errors.splitlines()]
    assert events, "logs are structured: one JSON object per line when stderr is no terminal"


def test_closed_off_loopback_unless_told(refused: Refused, tmp_path: Path) -> None:
    """A router says which settings are missing, and `--insecure` is one way to go on: to the next thing missing."""
    write_tokenizer(tmp_path)
    arguments = ("router", "--model-dir", str(tmp_path), "--host", "0.0.0.0", "--port", "0")
    code, line = refused(*arguments)
    assert code == 1
    assert "router.host: the router would listen on 0.0.0.0 without encryption (tls.certificate, tls.key)" in line
    assert "access.required" in line
    _, other = refused(*arguments, "--insecure", "--set", "access.required=true")
    assert "there is nothing to know callers by" in other


def test_a_start_that_fails_kills_nobody_else(refused: Refused) -> None:
    """Processes that were there before a cluster are not the cluster's."""
    with subprocess.Popen(["sleep", "60"]) as other:
        refused("serve", "--model", "/nowhere")
        assert other.poll() is None
        other.kill()
