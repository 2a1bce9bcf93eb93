"""Experts that changed hands come from peers, whole or not at all; every bit is the checkpoint's."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest
import torch

from shoal.kernels import target as targets
from shoal.wire.tls import TlsConfig
from shoal.workers.checkpoint import Checkpoint, CheckpointError, open_checkpoint
from shoal.workers.config import WorkerConfig
from shoal.workers.errors import ConfigError, PeerError
from shoal.workers.experts.bank import ExpertBank, open_bank
from shoal.workers.experts.copying import Giver, Holder, Peer
from shoal.workers.experts.supply import ExpertSupply
from shoal.workers.model.timing import Stopwatch
from shoal.workers.model.weights import LayerExperts, load_experts, sample_expert
from shoal.workers.server import WorkerServer
from tests.workers.clients import StreamClient, submit_message
from tests.workers.engines import make_engine, random_tokens, run, sequence
from tests.workers.processes import crew

ALL = [tuple(range(8))] * 4
CPU = torch.device("cpu")


@pytest.fixture
def copy(tiny: Path, tmp_path: Path) -> Path:
    """A checkpoint that a test may spoil."""
    return Path(shutil.copytree(tiny, tmp_path / "model"))


def truncate(model: Path) -> None:
    """Its weights are away, for whoever has the files open too."""
    for weights in model.glob("*.safetensors"):
        os.truncate(weights, 64)


def bank_of(checkpoint: Checkpoint, copies: str = "always") -> ExpertBank:
    """An empty bank."""
    config = WorkerConfig(model=str(checkpoint.path), peer_copies=copies)
    return open_bank(checkpoint, targets.choose("cpu"), config, "n", Stopwatch())


@contextmanager
def giving(holder: Holder) -> Iterator[str]:
    """A worker's server that gives what `holder` holds; its address."""
    server = WorkerServer(None, "127.0.0.1", (0,), 16, giver=Giver(lambda: holder))  # type: ignore[arg-type]  # experts alone are asked for
    server.start()
    try:
        yield server.address
    finally:
        server.stop()


def same(bank: ExpertBank, wanted: Sequence[Sequence[int]], checkpoint: Checkpoint) -> bool:
    """Whether the bank holds what the checkpoint says, bit for bit."""
    return all(
        bank.bytes_of(layer, expert) == one(checkpoint, layer, expert)
        for layer, ids in enumerate(wanted)
        for expert in ids
    )


def one(checkpoint: Checkpoint, layer: int, expert: int) -> bytes:
    """One expert's bytes as they are loaded."""
    loaded = load_experts(checkpoint, layer, [expert], CPU)
    return b"".join(part[0].reshape(-1).view(torch.uint8).numpy().tobytes() for part in loaded.parts)


def test_a_newcomer_gets_its_experts_from_a_peer(tiny: Path) -> None:
    """None is read from the checkpoint; every sequence, on either rank, is token by token what it is alone."""
    prompt = random_tokens(20, 1000, seed=1)
    alone = run(make_engine(tiny), sequence(prompt, name="r", max_tokens=40))[0]
    with crew(tiny, *"ab", peer_copies="always") as hired:
        hired.form("a")
        reports = hired.form(*"ab")
        assert [(0, 0), (16, 16)] == [(r.experts_loaded, r.experts_copied) for r in reports]
        assert 0 == reports[1].bytes_read
        for name in "ab":
            client = StreamClient(hired.address(name))
            client.send(submit_message("r", prompt, max_tokens=40))
            assert alone == [token for output in client.outputs("r") for token in output.ids]
            client.close()


def test_a_checkpoint_that_is_away_is_no_loss_while_a_peer_has_the_experts(copy: Path) -> None:
    """Nothing is asked of peers in a repair until the checkpoint fails; then they give everything. Where nobody has an
    expert the change is refused and the old epoch goes on."""
    prompt = random_tokens(20, 1000, seed=2)
    alone = run(make_engine(copy), sequence(prompt, name="r", max_tokens=20))[0]
    with crew(copy, *"abc") as hired:
        hired.form(*"ab")
        truncate(copy)
        reports = hired.form(*"abc")
        assert [r.experts_loaded for r in reports] == [r.experts_copied for r in reports]
        assert reports[2].experts_copied == 8
        client = StreamClient(hired.address("c"))
        client.send(submit_message("r", prompt, max_tokens=20))
        assert alone == [token for output in client.outputs("r") for token in output.ids]
        client.close()
        for name in "ab":
            hired.workers.pop(name).kill()
        with pytest.raises(CheckpointError):
            hired.form("c", together=False)


@pytest.mark.parametrize("how", ["bit", "short", "long", "other", "gone"])
def test_a_damaged_copy_is_found_and_the_checkpoint_is_used(
    tiny: Path, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A flipped bit, a part that is missing or too much, another expert's bytes, a peer that dies in the middle."""
    with open_checkpoint(tiny) as checkpoint:
        source, bank = bank_of(checkpoint), bank_of(checkpoint)
        source.commit(source.stage(ALL))
        copied = partial(_spoiled, how, source)
        monkeypatch.setattr("shoal.workers.experts.copying._copied", copied)
        with giving(source) as address:
            before = checkpoint.bytes_read
            staged = bank.stage(ALL, [address], patient=True)
        assert 32 == staged.loaded
        assert 5 <= staged.copied < 32, "those that came before the damage were whole"
        assert same(bank, ALL, checkpoint)
        assert checkpoint.bytes_read > before


def _spoiled(how: str, bank: ExpertBank, holder: Holder, layer: int, expert: int) -> tuple[bytes, bytes]:
    from shoal.workers.experts.copying import digest_of

    data = bank.bytes_of(layer, expert)
    assert data is not None
    digest = digest_of(layer, expert, data)
    if (layer, expert) != (0, 5):
        return data, digest
    match how:
        case "bit":
            return bytes([data[0] ^ 1]) + data[1:], digest
        case "short":
            return data[:-1], digest
        case "long":
            return data + b"x", digest
        case "other":
            other = bank.bytes_of(layer, 4)
            assert other is not None
            return other, digest_of(layer, 4, other)
        case _:
            raise OSError("the process dies")


def test_a_peer_that_lays_experts_out_in_another_way_is_left_alone(tiny: Path) -> None:
    """Bytes mean nothing between two kinds of kernels, or two checkpoints; and nobody at the address is no loss."""
    with open_checkpoint(tiny) as checkpoint:
        bank = bank_of(checkpoint)
        other = open_bank(checkpoint, targets.choose("cpu"), WorkerConfig(model=str(tiny)), "m", Stopwatch())
        other.commit(other.stage(ALL))
        with giving(other) as address:
            with pytest.raises(PeerError, match="laid out in another way"):
                Peer(address, bank.layout, TlsConfig()).held()
            staged = bank.stage(ALL, [address, "127.0.0.1:9"], patient=True)
        assert (32, 0) == (staged.loaded, staged.copied)
        assert same(bank, ALL, checkpoint)


def test_a_peer_gives_an_expert_whole_while_its_slots_change(tiny: Path) -> None:
    """One slot for two experts in turn: what is read meanwhile is one of them, and never under the other's name."""
    with open_checkpoint(tiny) as checkpoint:
        bank = bank_of(checkpoint)
        right = {expert: one(checkpoint, 0, expert) for expert in range(8)}
        done, wrong = threading.Event(), []

        def look() -> None:
            while not done.is_set():
                for expert in range(8):
                    data = bank.bytes_of(0, expert)
                    if data is not None and data != right[expert]:
                        wrong.append(expert)

        looking = threading.Thread(target=look)
        looking.start()
        for turn in range(60):
            wanted = [(turn % 8, (turn + 3) % 8)] * 4
            bank.commit(bank.stage(wanted))
        done.set()
        looking.join()
        assert [] == wrong
        assert all(len(ids) <= 4 for ids in bank.held())


class Clocked:
    """A checkpoint and a peer that take a known time for each expert."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.now, self.from_checkpoint, self.from_peer = 0.0, 1.0, 1.0
        self.read: list[int] = []
        self.asked = 0
        self._checkpoint = checkpoint
        self.supply = ExpertSupply(self._load, sample_expert(checkpoint.config, CPU), self._connect, "auto",
                                   clock=lambda: self.now)  # fmt: skip

    def _load(self, layer: int, ids: Sequence[int], spare_slots: int) -> LayerExperts:
        self.now += self.from_checkpoint * len(ids)
        self.read += ids
        return load_experts(self._checkpoint, layer, ids, CPU, spare_slots)

    def _connect(self, address: str) -> Peer:
        clocked = self

        class Known(Peer):
            def __init__(self) -> None:
                clocked.asked += 1

            def held(self) -> list[frozenset[int]]:
                return [frozenset(range(8))] * 4

            def read(self, layer: int, experts: Sequence[int], size: int) -> Iterator[tuple[int, bytearray]]:
                for expert in experts:
                    clocked.now += clocked.from_peer
                    yield expert, bytearray(one(clocked._checkpoint, layer, expert))

            def close(self) -> None:
                pass

        return Known()

    def change(self, patient: bool) -> tuple[int, int]:
        """One change that wants two layers of four experts; how many came from peers, and from the checkpoint."""
        self.read = []
        self.supply.begin(["peer"], patient)
        for layer in range(2):
            self.supply.read(layer, [1, 2, 3, 4])
        self.supply.end()
        return self.supply.copied, len(self.read)


def test_the_faster_source_is_used_and_the_slower_tried_again(tiny: Path) -> None:
    """Peers are asked first when nobody waits; by what was measured from then on, also in a repair; what was slower
    gets one expert in each change, so that a checkpoint that became slow, or fast, is noticed."""
    with open_checkpoint(tiny) as checkpoint:
        clocked = Clocked(checkpoint)
        assert ((0, 8), 0) == (clocked.change(patient=False), clocked.asked)
        clocked.from_peer = 0.5
        assert (1 + 4, 3) == clocked.change(patient=True)
        assert (8, 0) == clocked.change(patient=False)
        assert (3 + 4, 1) == clocked.change(patient=True)
        clocked.from_peer = 2.0
        assert (3 + 0, 1 + 4) == clocked.change(patient=True)
        asked = clocked.asked
        assert ((0, 8), asked) == (clocked.change(patient=False), clocked.asked)


def test_a_wrong_setting_is_refused() -> None:
    """By its name."""
    with pytest.raises(ConfigError, match=r"^worker\.peer_copies must be "):
        WorkerConfig(model="m", peer_copies="sometimes")
