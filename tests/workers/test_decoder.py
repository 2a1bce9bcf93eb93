"""Replayed decode steps are the plain ones, bit for bit, through new epochs and with little memory."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from shoal.cluster.placement import even_placement
from shoal.kernels import target as targets
from shoal.workers.checkpoint import open_checkpoint
from shoal.workers.config import WorkerConfig
from shoal.workers.engine.batch import step_ints
from shoal.workers.engine.engine import Engine
from shoal.workers.engine.scheduler import Work as Planned
from shoal.workers.experts.bank import open_bank
from shoal.workers.experts.exchange import LocalExchange
from shoal.workers.experts.placement import Placement
from shoal.workers.model.decoder import EXPERTS, SEGMENTS, STALE, WHOLE, Decoder
from shoal.workers.model.graphs import EagerRecorder, Work, sizes_up_to
from shoal.workers.model.moe import ExpertLayer
from shoal.workers.model.timing import Stopwatch
from shoal.workers.model.upload import Upload
from tests.workers.engines import make_engine, random_tokens, run, sequence
from tests.workers.groups import exchanges, on_ranks, run_group
from tests.workers.test_exactness import requests


@pytest.fixture(scope="module")
def plain(tiny: Path) -> list[list[int]]:
    """What the plain path generates."""
    return run(make_engine(tiny), *requests())


def replaying(engine: Engine) -> Decoder:
    assert engine.decoder is not None
    return engine.decoder


def loads(engine: Engine) -> list[dict[int, int]]:
    return [layer.loads for layer in engine.model.experts]


def test_a_replayed_step_is_a_plain_one(tiny: Path, plain: list[list[int]]) -> None:
    """Five sequences in steps of eight rows: the same tokens, and rows that fill up count in no expert's load."""
    engine, other = make_engine(tiny, graphs=True), make_engine(tiny)
    assert plain == run(engine, *requests()) == run(other, *requests())
    assert replaying(engine).replays >= 10
    assert ((WHOLE, 8),) == replaying(engine).recorded
    assert loads(other) == loads(engine)


@pytest.mark.parametrize("rows", [1, 2, 3, 6])
def test_the_size_does_not_matter(tiny: Path, rows: int) -> None:
    """A sequence among few and among many, filled up or not, has the same bits behind the last layer."""
    engine = make_engine(tiny, graphs=True)
    sequences = [sequence(random_tokens(9 + n, 1000, seed=n), name=f"r{n}") for n in range(rows)]
    for s in sequences:
        engine.submit(s)
    engine.step()
    for s in sequences:
        engine.kv.extend(s.tables, s.computed, 1)
    step = step_ints([Planned(s, 1) for s in sequences], engine.model.kv.plan.block_size)
    found: list[torch.Tensor] = []
    for size in (None, *[s for s in replaying(engine).sizes if s >= rows]):
        if size is None:
            logits = engine.model.forward(step.upload(Upload(torch.device("cpu"))))
        else:
            replaying(engine).sizes = (size,)
            x = replaying(engine).hidden(step)
            assert x is not None
            logits = engine.model.unembed(x)
        found.append(logits)
    assert all(torch.equal(found[0], other) for other in found[1:])
    assert len(found) > 2


@pytest.mark.parametrize("size", [2, 4])
def test_a_group_replays_between_exchanges(tiny: Path, plain: list[list[int]], size: int) -> None:
    """Some ranks replay, some have nothing to do, one takes the plain path: the same tokens."""
    r = requests()
    per_rank = [r[:3], r[3:]] if size == 2 else [r[:2], [], r[2:4], r[4:]]
    assert plain == run_group(tiny, size, per_rank, graphs=[True] * (size - 1) + [False])
    assert plain == run_group(tiny, size, [requests(), *[[]] * (size - 1)], graphs=[True] * size)


@pytest.mark.parametrize("spare_slots", [4, 0])
def test_an_epoch_records_nothing_anew(tiny: Path, plain: list[list[int]], spare_slots: int) -> None:
    """All experts change hands: where they found free slots, what was recorded reads the new placement; where the slots
    themselves had to move, it is recorded again."""
    checkpoint = open_checkpoint(tiny)
    config, settings = checkpoint.config, WorkerConfig(model=str(tiny), expert_spare_slots=spare_slots)
    even = even_placement(config.num_layers, config.num_experts, 2)
    other = Placement(2, tuple(tuple((1 - rank,) for (rank,) in layer) for layer in even.holders))
    engines = [make_engine(tiny, graphs=True) for _ in range(2)]
    banks = [open_bank(checkpoint, targets.choose("cpu"), settings, "n", Stopwatch()) for _ in range(2)]

    def epoch(placement: Placement) -> list[list[int]]:
        ends = exchanges(2, placement, config.experts_per_token)

        def serve(rank: int) -> list[list[int]]:
            engine, bank, mine = engines[rank], banks[rank], [requests(), []][rank]
            staged = bank.stage([placement.experts_of(layer, rank) for layer in range(config.num_layers)])
            bank.commit(staged)
            before = engine.model.experts
            engine.model.experts = tuple(
                ExpertLayer(config, i, layer, ends[rank], before[i]) for i, layer in enumerate(staged.views())
            )
            replaying(engine).record_all()
            engine.exchange, engine.next_step = ends[rank], 0
            for s in mine:
                engine.submit(s)
            while not engine.step().idle:
                pass
            ends[rank].close()
            return [s.tokens[s.given_length :] for s in mine]

        return on_ranks(2, serve)[0]

    recordings = []
    for placement in (even, other, even):
        assert plain == epoch(placement)
        recordings.append(dict(replaying(engines[0])._recordings))
    kinds = {SEGMENTS: len(replaying(engines[0]).sizes), EXPERTS: len(sizes_up_to(32))}
    assert kinds == {kind: sum(key[0] == kind for key in recordings[0]) for kind in kinds}
    kept = [all(new[key] is old for key, old in recordings[0].items()) for new in recordings]
    assert kept == ([True, True, True] if spare_slots else [True, False, False])


def test_an_epoch_alone_serves_from_what_a_group_recorded(tiny: Path, plain: list[list[int]]) -> None:
    """The same slots, alone and in a group: both kinds of recordings stay."""
    engine = make_engine(tiny, graphs=True)
    assert plain == run(engine, *requests())
    decoder, layers = replaying(engine), engine.model.experts
    engine.model.experts = tuple(
        ExpertLayer(engine.model.config, i, layer.held, LocalExchange(), layer) for i, layer in enumerate(layers)
    )
    recorded = dict(decoder._recordings)
    assert plain == run(engine, *requests())
    assert recorded == decoder._recordings


class Costly(EagerRecorder):
    """Every recording takes ten bytes."""

    taken = 0

    def record(self, work: Work) -> Work:
        Costly.taken += 10
        return super().record(work)


def with_memory(engine: Engine, memory: int) -> Decoder:
    """The engine's decoder anew, over a recorder whose recordings take memory."""
    Costly.taken = 0
    engine.decoder = Decoder(
        engine.model, Costly(), Upload(engine.model.target.device, packed=True), 16, 2048, memory=memory,
        free_bytes=lambda: 1000 - Costly.taken,
    )  # fmt: skip
    engine._runner._decoder = engine.decoder
    return engine.decoder


def test_memory_is_bounded(tiny: Path, plain: list[list[int]]) -> None:
    """The largest sizes come first; steps that find no room take the plain path and give the same tokens."""
    engine = make_engine(tiny, graphs=True)
    decoder = with_memory(engine, 20)
    decoder.record_all()
    assert ((WHOLE, 16), (WHOLE, 8)) == decoder.recorded
    assert decoder.nbytes == 20
    assert plain == run(engine, *requests())
    first = decoder.replays
    assert run(make_engine(tiny), requests()[0]) == run(engine, requests()[0])
    assert first == decoder.replays, "size 1 was never recorded"


def test_what_was_not_used_for_long_gives_way(tiny: Path) -> None:
    """And what is in use does not: two sizes never take turns in being recorded."""
    engine = make_engine(tiny, graphs=True)
    decoder = with_memory(engine, 20)
    decoder.record_all()
    run(engine, requests()[0])
    assert ((WHOLE, 16), (WHOLE, 8)) == decoder.recorded
    decoder.replays += STALE
    run(engine, *requests())
    assert ((WHOLE, 8),) == decoder.recorded[-1:]
    run(engine, requests()[0])
    assert {(WHOLE, 8), (WHOLE, 1)} == set(decoder.recorded)


def test_what_cannot_be_recorded_takes_the_plain_path(tiny: Path, plain: list[list[int]]) -> None:
    """It is tried once, not in every step."""

    class Unable:
        tried = 0

        def record(self, work: Work) -> Work:
            self.tried += 1
            raise RuntimeError("operation not permitted when stream is capturing")

    engine = make_engine(tiny, graphs=True)
    decoder = replaying(engine)
    decoder._recorder = unable = Unable()
    assert plain == run(engine, *requests())
    assert (1, 0, ()) == (unable.tried, decoder.replays, decoder.recorded)
