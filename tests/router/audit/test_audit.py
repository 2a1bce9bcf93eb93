"""The trail: changed, cut, killed in the middle, without a disk; and what it holds of real requests."""

from __future__ import annotations

import asyncio
import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import grpc
import pytest
from typer.testing import CliRunner

from shoal.cluster.commands.audit import app
from shoal.cluster.errors import UnhealthyError
from shoal.proto.v1 import inference_pb2 as api
from shoal.router.access.caller import Caller
from shoal.router.audit.chain import Head, chained, verify
from shoal.router.audit.config import AuditConfig
from shoal.router.audit.file import AuditFile, AuditFileError, read_head
from shoal.router.audit.log import AuditLog
from shoal.router.audit.trail import MOST_STRANGERS, Trail
from shoal.router.errors import AuditError, StartError
from shoal.router.fleet.scripted_worker import saying
from shoal.router.limits.config import LimitsConfig
from shoal.router.tokenizer import Tokenizer
from tests.router.access.showing import Ring
from tests.router.audit.kills import KEY, run
from tests.router.byte_tokenizer import ids_of
from tests.router.conftest import StartCluster, StartRouter
from tests.router.http.asking import HELLO, ask
from tests.router.talking import events_of, failed, trailing, user

WORDS = "<|channel|>final<|message|>Hi<|return|>"


def trail(count: int) -> tuple[list[bytes], Head]:
    """Lines of a chain."""
    lines, head = [], Head()
    for number in range(count):
        line, head = chained({"kind": "called", "tenant": f"t{number % 3}", "text": "ä" * number}, head, KEY)
        lines.append(line)
    return lines, head


def test_what_was_written_verifies() -> None:
    """To the end, and not with another key."""
    lines, head = trail(20)
    assert verify(lines, KEY, head) == (head, [])
    assert len(verify(lines, b"x" * 32, head)[1]) == 20


def test_every_change_shows() -> None:
    """Ten thousand random edits, deletions, swaps, copies and cuts: each is found."""
    lines, head = trail(8)
    draw = random.Random(7)
    for _ in range(10_000):
        changed = list(lines)
        at, other = draw.sample(range(len(lines)), 2)
        match draw.randrange(6):
            case 0:  # a byte
                raw = bytearray(changed[at])
                raw[draw.randrange(len(raw) - 1)] ^= 1 << draw.randrange(8)
                changed[at] = bytes(raw)
            case 1:
                del changed[at]
            case 2:
                changed[at], changed[other] = changed[other], changed[at]
            case 3:
                del changed[at:]
            case 4:
                changed.insert(at, changed[other])
            case _:  # written anew, by somebody who has not the key
                record = json.loads(changed[at])
                code = record.pop("code")
                record["tenant"] = "another"
                body = json.dumps(record, ensure_ascii=False, sort_keys=True, separators=(",", ":")).encode()
                changed[at] = body[:-1] + b',"code":"' + code.encode() + b'"}\n'
        if changed != lines:
            assert verify(changed, KEY, head)[1], "a change did not show"


def test_whoever_kills_the_writer_loses_nothing_that_was_acknowledged(tmp_path: Path) -> None:
    """kill -9 again and again: the chain verifies each time and holds every record that was told to be there. `make
    chaos` does it fifty times."""
    assert run(tmp_path / "r.jsonl", kills=6, seed=3) > 0


def test_a_trail_that_was_changed_is_not_gone_on_with(tmp_path: Path) -> None:
    """A router does not bury a change under new records."""
    file = AuditFile(tmp_path / "r.jsonl", KEY)
    file.append([{"kind": "called", "n": n} for n in range(3)])
    file.close()
    (tmp_path / "r.jsonl").write_bytes((tmp_path / "r.jsonl").read_bytes().replace(b'"n":1', b'"n":7'))
    with pytest.raises(AuditFileError, match="line 2"):
        AuditFile(tmp_path / "r.jsonl", KEY)


class FullDisk(AuditFile):
    """A file on a disk that is full while `full` says so."""

    full = False

    def append(self, records: Any) -> None:
        """Half of it is written, then nothing more."""
        if self.full:
            os.write(self._file, b'{"half')
            os.ftruncate(self._file, self._size)
            raise AuditFileError("no space left on device")
        super().append(records)


@pytest.mark.parametrize("refuse", [True, False])
async def test_a_full_disk_is_never_silent(tmp_path: Path, refuse: bool) -> None:
    """Refused or counted, as was said; and the next record that is written says how many are missing."""
    file = FullDisk(tmp_path / "r.jsonl", KEY)
    log = AuditLog(file, refuse=refuse)
    file.full = True
    for _ in range(3):
        if refuse:
            with pytest.raises(AuditError):
                await log.write({"kind": "called"})
        else:
            await log.write({"kind": "called"})
    file.full = False
    await asyncio.gather(*(log.write({"kind": "called", "n": n}) for n in range(50)))
    await log.close()
    lines = (tmp_path / "r.jsonl").read_bytes().splitlines(keepends=True)

    assert verify(lines, KEY, read_head(tmp_path / "r.jsonl"))[1] == []
    assert json.loads(lines[0])["lost_before"] == 3
    assert [json.loads(line)["n"] for line in lines] == list(range(50))


def test_half_a_batch_that_could_not_be_cut_off_is_cut_off_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk fails in the middle of a batch, and again when that is taken back: nothing is written behind it."""
    path = tmp_path / "r.jsonl"
    file = AuditFile(path, KEY)
    file.append([{"kind": "called", "n": 0}])
    write, truncate = os.write, os.ftruncate

    def half(fd: int, raw: bytes) -> int:
        write(fd, raw[:20])
        raise OSError(5, "Input/output error")

    def fails(fd: int, size: int) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "write", half)
    monkeypatch.setattr(os, "ftruncate", fails)
    for _ in range(2):
        with pytest.raises(AuditFileError):
            file.append([{"kind": "called", "n": 1}])
    monkeypatch.setattr(os, "write", write)
    with pytest.raises(AuditFileError):
        file.append([{"kind": "called", "n": 1}])
    monkeypatch.setattr(os, "ftruncate", truncate)
    file.append([{"kind": "called", "n": 1}])
    end, problems = verify(path.read_bytes().splitlines(keepends=True), KEY, read_head(path))

    assert problems == []
    assert end.number == 2


def test_a_disk_that_is_really_full(tmp_path: Path) -> None:
    """Past the most that a file may hold nothing half-written stays, and what was there verifies."""
    script = """
import resource, signal, sys
from pathlib import Path
from shoal.router.audit.file import AuditFile, AuditFileError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
file = AuditFile(Path(sys.argv[1]), b"k" * 32)
resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))
for n in range(100):
    try:
        file.append([{"kind": "called", "text": "x" * 300}])
    except AuditFileError:
        print(n)
        break
"""
    path = tmp_path / "r.jsonl"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    run = subprocess.run(
        [sys.executable, "-c", script, str(path)], capture_output=True, text=True, env=environment
    )  # its output says how it went
    end, problems = verify(path.read_bytes().splitlines(keepends=True), KEY, read_head(path))

    assert run.stdout.strip() == str(end.number), run.stderr
    assert problems == []


def records(directory: Path) -> list[dict[str, Any]]:
    """All of a directory."""
    return [json.loads(line) for path in directory.glob("*.jsonl") for line in path.read_text().splitlines()]


async def test_everything_is_recorded_and_content_as_agreed(
    start_cluster: StartCluster, tokenizer: Tokenizer, tmp_path: Path, redis_url: str
) -> None:
    """Inference, sessions, those not let in; prompts hashed, stored or encrypted by the tenant's policy."""
    ring = Ring(tmp_path)
    tenants, secret, key = tmp_path / "tenants.toml", tmp_path / "enc", tmp_path / "key"
    secret.write_bytes(b"e" * 32)
    key.write_bytes(KEY)
    tenants.write_text('[acme]\naudit = "encrypt"\n')
    audit = AuditConfig(directory=str(tmp_path / "trail"), key_file=str(key), encryption_key_file=str(secret))
    cluster = await start_cluster(
        saying(ids_of(tokenizer, WORDS)), access=ring.config(), audit=audit, http_port=0, model_name="model",
        limits=LimitsConfig(tenants_file=str(tenants)), redis_url=redis_url,
    )  # fmt: skip
    stub: Any = cluster.front.inference
    sessions: Any = cluster.front.sessions
    shown = (("authorization", f"Bearer {ring.shown['user']}"),)
    await events_of(stub.Chat(user("my secret", session_id="s", request_id="first"), metadata=shown))
    await failed(stub.Chat(user("again"), metadata=(("authorization", "Bearer noise"),)))
    await sessions.GetSession(api.GetSessionRequest(session_id="s"), metadata=shown)
    await ask(
        cluster.front.listening.http, "/v1/chat/completions", HELLO, authorization=f"Bearer {ring.shown['viewer']}"
    )
    await cluster.front.router.stop(0)
    written = records(tmp_path / "trail")
    exported = CliRunner().invoke(app, ["export", str(tmp_path / "trail"), "--encryption-key", str(secret)])

    told = [(r["kind"], r["method"], r.get("outcome", "")) for r in written]
    assert told == [
        ("accepted", "InferenceService/Chat", ""),
        ("ended", "InferenceService/Chat", "OK"),
        ("called", "InferenceService/Chat", "UNAUTHENTICATED credential"),
        ("called", "SessionService/GetSession", "OK"),
        ("called", "http.ChatCompletions", "PERMISSION_DENIED denied"),
    ]
    accepted, ended, stranger = written[:3]
    assert (accepted["tenant"], accepted["key"], accepted["role"]) == ("acme", ring.keys["user"].id, "user")
    assert accepted["request"] == ended["request"] == "first"
    assert accepted["parameters"]["session_id"] == "s"
    assert ended["counts"]["output_tokens"] > 0
    assert "tenant" not in stranger
    assert "my secret" not in json.dumps(written)
    opened = [json.loads(line) for line in exported.stdout.splitlines()]
    assert "my secret" in opened[0]["prompt"]["text"]
    assert opened[1]["answer"]["text"] == "Hi"
    assert CliRunner().invoke(app, ["verify", str(tmp_path / "trail"), "--key", str(key)]).exit_code == 0


async def test_what_cannot_be_recorded_is_not_served(start_cluster: StartCluster, tmp_path: Path) -> None:
    """With "refuse" nothing reaches a worker; the caller is told to come back."""
    cluster = await start_cluster(saying([1]), audit=AuditConfig(directory=str(tmp_path / "trail")))
    protection: Any = cluster.front.router._protection

    def broken(records: Any) -> None:
        raise AuditFileError("no space left on device")

    protection.trail._log._file.append = broken
    _, error = await failed(cluster.front.inference.Generate(api.GenerateRequest(text="x")))

    assert error.code() is grpc.StatusCode.UNAVAILABLE
    assert trailing(error)["shoal-reason"] == "audit"
    assert not cluster.worker.submits


def test_verify_tells_what_was_changed(tmp_path: Path) -> None:
    """With a line and an exit code of its own."""
    file = AuditFile(tmp_path / "r.jsonl", b"")
    file.append([{"kind": "called", "n": n} for n in range(3)])
    file.close()
    lines = (tmp_path / "r.jsonl").read_bytes().splitlines(keepends=True)
    (tmp_path / "r.jsonl").write_bytes(b"".join(lines[:-1]))
    with pytest.raises(UnhealthyError):
        CliRunner().invoke(app, ["verify", str(tmp_path)], catch_exceptions=False)
    assert "before record 3" in CliRunner().invoke(app, ["verify", str(tmp_path)]).stdout


@pytest.mark.parametrize(
    "given",
    [
        {"key_file": "gone"}, {"directory": "file/x"},
        {"encryption_key_file": "short"}, {"encryption_key_file": "long"},
    ],
)  # fmt: skip
async def test_a_trail_that_cannot_be_kept_is_a_reason_not_to_start(
    given: dict[str, str], start_router: StartRouter, tmp_path: Path
) -> None:
    """Naming the setting."""
    (tmp_path / "short").write_bytes(b"short")
    (tmp_path / "long").write_text("0f" * 32)
    (tmp_path / "file").write_bytes(b"")
    paths = {"directory": str(tmp_path / "trail"), **{k: str(tmp_path / v) for k, v in given.items()}}
    with pytest.raises(StartError, match=rf"audit\.{next(iter(given))}"):
        await start_router(audit=AuditConfig(**paths))


async def test_nobody_without_a_credential_fills_the_disk(tmp_path: Path) -> None:
    """Of thousands in a second a few are recorded, and how many there were besides with the next; those who are known
    are recorded all the same."""
    now, known = [100.0], Caller("acme", "user", "k")
    trail = Trail(AuditLog(AuditFile(tmp_path / "r.jsonl", KEY), refuse=True), "r", None, lambda: now[0])
    for _ in range(1_000):
        await trail.called(None, "http.Metrics", "UNAUTHENTICATED credential")
    await trail.called(known, "SessionService/GetSession", "OK")
    now[0] = 101.0
    await trail.called(None, "http.Metrics", "UNAUTHENTICATED credential")
    await trail.close()
    written = records(tmp_path)

    assert len(written) == MOST_STRANGERS + 2
    assert written[MOST_STRANGERS]["tenant"] == "acme"
    assert written[-1]["besides"] == 1_000 - MOST_STRANGERS


async def test_a_name_that_is_no_text_is_recorded(tmp_path: Path) -> None:
    """Half a surrogate pair, as JSON may hold one, becomes what JSON calls it; the chain verifies."""
    trail = Trail(AuditLog(AuditFile(tmp_path / "r.jsonl", KEY), refuse=True), "r", None, lambda: 0.0)
    await trail.called(Caller("acme", "user", "k", "half \ud800 of ä"), "http.ListModels", "OK")
    await trail.close()

    assert records(tmp_path)[0]["subject"] == "half \ud800 of ä"
    assert verify((tmp_path / "r.jsonl").read_bytes().splitlines(keepends=True), KEY)[1] == []


async def test_whoever_waits_for_a_record_hears_of_any_mistake(tmp_path: Path) -> None:
    """Of ours, too: nobody waits for ever."""
    log = AuditLog(AuditFile(tmp_path / "r.jsonl", KEY), refuse=True)
    with pytest.raises(AuditError):
        await log.write({"kind": object()})
    await log.write({"kind": "called"})
    await log.close()

    assert [record.get("lost_before") for record in records(tmp_path)] == [1]
