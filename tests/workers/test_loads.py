"""What experts had to do is told as it is or as it was, and never makes anybody wait."""

from __future__ import annotations

from pathlib import Path

from shoal.workers.engine.loads import LoadBook
from shoal.workers.experts.exchange import LocalExchange
from shoal.workers.model.moe import ExpertLayer
from tests.workers.engines import make_engine, random_tokens, run, sequence
from tests.workers.test_overlap import slow


def test_a_cpu_tells_what_is(tiny: Path) -> None:
    """In the middle of work too, as every layer tells it by itself."""
    engine = make_engine(tiny)
    engine.submit(sequence(random_tokens(20, 1000, 1), max_tokens=4))
    for _ in range(3):
        engine.step()
        assert tuple(layer.loads for layer in engine.model.experts) == engine.expert_loads()
    assert [22 * engine.model.config.experts_per_token] * 4 == [sum(layer.values()) for layer in engine.expert_loads()]


def test_a_busy_device_tells_with_its_next_step(tiny: Path) -> None:
    """Asking begins nothing by itself: the figures come with the tokens of a step, and are of its time."""
    engine, log = slow(tiny)
    book, k = engine._runner.loads, engine.model.config.experts_per_token
    engine.submit(sequence(random_tokens(20, 1000, 1), max_tokens=9))
    for _ in range(3):
        engine.step()
    quiet = len(log)
    assert () == book.ask(busy=True) == book.ask(busy=True)
    assert quiet == len(log)
    engine.step()  # chooses behind the step that is the fourth
    assert () == book.ask(busy=True)
    engine.step()
    assert [23 * k] * 4 == [sum(layer.values()) for layer in book.ask(busy=True)]
    assert [24 * k] * 4 == [sum(layer.values()) for layer in book.ask(busy=False)]
    while engine.has_work:
        engine.step()


def test_a_new_epoch_tells_nothing_of_the_one_before(tiny: Path) -> None:
    """Its counts begin again; what is on its way then is not taken for its own."""
    engine = make_engine(tiny, sampler="device", overlap=True)
    book: LoadBook = engine._runner.loads
    book.ask(busy=True)
    run(engine, sequence(random_tokens(20, 1000, 1), max_tokens=4))
    assert len(book.ask(busy=True)) == 4
    config, before = engine.model.config, engine.model.experts
    engine.model.experts = tuple(
        ExpertLayer(config, i, layer.held, LocalExchange(), layer) for i, layer in enumerate(before)
    )
    assert () == book.ask(busy=True)
    assert [0] * 4 == [sum(layer.values()) for layer in book.ask(busy=False)]
