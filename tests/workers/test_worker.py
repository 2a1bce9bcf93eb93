"""The worker over its real gRPC stream, without Ray."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from shoal.cluster.placement import even_placement
from shoal.proto.v1 import kv_pb2 as kv_pb
from shoal.proto.v1 import worker_pb2 as pb
from shoal.workers.config import WorkerConfig
from shoal.workers.experts.group import GroupSpec, Member
from shoal.workers.experts.rendezvous import RendezvousServer
from shoal.workers.worker import Worker
from tests.workers.clients import connected, submit_message
from tests.workers.engines import make_engine, random_tokens, run, sequence
from tests.workers.groups import on_ranks

_epochs = itertools.count(1)


class Group:
    """Workers of one group in this process."""

    def __init__(self, path: Path, size: int, **settings: Any) -> None:
        self.workers = [
            Worker(WorkerConfig(model=str(path), worker_id=f"w{i}", kv_tokens=4096, **settings)) for i in range(size)
        ]
        facts = [worker.prepare() for worker in self.workers]
        self.addresses = [f.address for f in facts]
        self.store = RendezvousServer("127.0.0.1")
        spec = GroupSpec(
            group="g0",
            epoch=next(_epochs),
            store_host="127.0.0.1",
            store_port=self.store.port,
            members=tuple(Member(i, f.worker_id, f.address) for i, f in enumerate(facts)),
            placement=even_placement(facts[0].num_layers, facts[0].num_experts, size),
        )
        self.reports = on_ranks(size, lambda rank: self.workers[rank].reconfigure(spec, True))

    def stop(self) -> None:
        on_ranks(len(self.workers), lambda rank: self.workers[rank].stop())


@pytest.fixture(scope="module")
def pair(tiny: Path) -> Iterator[Group]:
    """Two ranks that sleep until somebody asks."""
    group = Group(tiny, 2)
    yield group
    group.stop()


def test_each_rank_read_only_its_experts(pair: Group) -> None:
    """Two ranks hold half of the experts each."""
    assert [report.experts_held for report in pair.reports] == [4 * 4, 4 * 4]


@pytest.mark.parametrize("rank", [0, 1])
def test_either_rank_serves_and_wakes_the_other(pair: Group, tiny: Path, rank: int) -> None:
    """A request to one rank wakes the sleeping group; tokens equal those of an engine alone."""
    prompt = random_tokens(20, 1000, seed=rank)
    expected = run(make_engine(tiny), sequence(prompt, max_tokens=8))[0]
    for round_ in range(3):
        with connected(pair.addresses[rank]) as client:
            client.send(submit_message(f"wake-{rank}-{round_}", prompt))
            outputs = list(client.outputs(f"wake-{rank}-{round_}"))
        assert expected == [token for output in outputs for token in output.ids]
        assert list(range(8)) == [output.offset for output in outputs]
        assert outputs[-1].finish == pb.SEQUENCE_FINISH_LENGTH


def test_welcome_tells_what_the_worker_is(pair: Group) -> None:
    """The first message names rank, epoch, limits and numerics."""
    with connected(pair.addresses[1]) as client:
        assert (client.welcome.rank, client.welcome.ep_size) == (1, 2)
        assert len(client.welcome.numerics_id) == 16
        assert len(client.welcome.tokenizer_hash) == 64


def test_cancel_ends_a_running_request(pair: Group) -> None:
    """After a cancel the request ends within two steps and its blocks are free."""
    with connected(pair.addresses[0]) as client:
        client.send(submit_message("long", [1, 2, 3], max_tokens=4000))
        first = next(client.outputs("long"))
        assert not first.finish
        client.send(pb.Cancel(request_id="long"))
        last = list(client.outputs("long"))[-1]
        assert last.finish == pb.SEQUENCE_FINISH_CANCELLED
        assert client.stub.GetStatus(pb.GetStatusRequest()).kv_blocks_used == 0


def test_cancel_of_one_choice_leaves_the_other(pair: Group) -> None:
    """Two choices run; the one that is named ends, the other goes on until all are cancelled."""
    with connected(pair.addresses[0]) as client:
        for choice in range(2):
            message = submit_message("both", [1, 2, 3], max_tokens=4000)
            message.choice = choice
            client.send(message)
        started = set[int]()
        for output in client.outputs("both"):
            started.add(output.choice)
            if started == {0, 1}:
                break
        client.send(pb.Cancel(request_id="both", choice=1))
        ended = list(client.outputs("both"))[-1]
        assert (ended.choice, ended.finish) == (1, pb.SEQUENCE_FINISH_CANCELLED)
        assert next(client.outputs("both")).choice == 0
        client.send(pb.Cancel(request_id="both"))
        ended = list(client.outputs("both"))[-1]
        assert (ended.choice, ended.finish) == (0, pb.SEQUENCE_FINISH_CANCELLED)


def test_a_closed_stream_ends_its_requests(pair: Group) -> None:
    """When a router goes, the worker stops generating for it."""
    with connected(pair.addresses[0]) as client:
        client.send(submit_message("orphan", [1, 2, 3], max_tokens=4000))
        next(client.outputs("orphan"))
    with connected(pair.addresses[0]) as client:
        deadline = time.monotonic() + 10
        while client.stub.GetStatus(pb.GetStatusRequest()).running and time.monotonic() < deadline:
            time.sleep(0.01)
        assert client.stub.GetStatus(pb.GetStatusRequest()).running == 0


def test_deadline_ends_a_request(pair: Group) -> None:
    """A request whose deadline passes is ended by the worker itself."""
    message = submit_message("late", [1, 2, 3], max_tokens=4000)
    message.deadline = time.time() + 0.2
    with connected(pair.addresses[0]) as client:
        client.send(message)
        assert list(client.outputs("late"))[-1].finish == pb.SEQUENCE_FINISH_CANCELLED


def test_a_second_request_hits_the_prefix_cache(pair: Group) -> None:
    """The first message of a sequence says how much of its prompt was found; another salt finds nothing."""
    prompt = random_tokens(50, 1000, seed=77)
    with connected(pair.addresses[0]) as client:
        cached = []
        for name, salt in (("cold", b"a"), ("warm", b"a"), ("stranger", b"b")):
            message = submit_message(name, prompt)
            message.cache_salt = salt
            client.send(message)
            cached.append(next(iter(list(client.outputs(name)))).cached_tokens)
    assert [0, 48, 0] == cached


def test_kv_events_come_to_those_who_ask(pair: Group) -> None:
    """Stored blocks are announced per layer group, once complete."""
    with connected(pair.addresses[1], kv_events=True) as client, connected(pair.addresses[1]) as deaf:
        client.send(submit_message("events", random_tokens(40, 1000, seed=78), max_tokens=1))
        messages = [client.next() for _ in range(3)]
        events = [e for m in messages for e in m.kv_events.events]
        deaf.send(submit_message("plain", [1, 2], max_tokens=1))
        assert not any(deaf.next().HasField("kv_events") for _ in range(2))
    assert [kv_pb.KV_GROUP_FULL] * 2 + [kv_pb.KV_GROUP_SLIDING] * 2 == [e.group for e in events]
    assert events[0].hash == events[2].hash


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda m: m.prompt.pop(), "prompt is empty"),
        (lambda m: m.prompt[0].ids.append(5000), "vocabulary ends at 1023"),
        (lambda m: m.prompt[0].ids.extend([1] * 5000), "too long"),
        (lambda m: setattr(m.sampling, "temperature", -1.0), "sampling.temperature"),
        (lambda m: setattr(m.sampling, "top_p", 0.0), "sampling.top_p"),
        (lambda m: setattr(m.limits, "max_tokens", 0), "max_tokens"),
        (lambda m: m.limits.stop_bytes.append(b""), "stop_bytes"),
        (lambda m: setattr(m, "adapter_id", "x"), "adapter"),
        (lambda m: m.constraint.states.add(), "constraint"),
    ],
)
def test_wrong_requests_are_refused_by_name(pair: Group, change: object, words: str) -> None:
    """A wrong field is refused as invalid, and the message names it."""
    message = submit_message("wrong", [1, 2, 3])
    change(message)  # type: ignore[operator]  # lambdas in parameters have no type
    with connected(pair.addresses[0]) as client:
        client.send(message)
        refused = client.next().refused
    assert refused.reason == pb.REFUSAL_REASON_INVALID
    assert words in refused.message


def test_a_stale_attempt_is_refused(pair: Group) -> None:
    """An attempt that is not newer than one seen before is refused."""
    with connected(pair.addresses[0]) as client:
        client.send(submit_message("again", [1, 2], attempt=3))
        list(client.outputs("again"))
        client.send(submit_message("again", [1, 2], attempt=2))
        assert client.next().refused.reason == pb.REFUSAL_REASON_STALE_ATTEMPT


def test_a_full_worker_refuses_with_a_hint(tiny: Path) -> None:
    """Beyond `max_waiting` requests are refused as overloaded, with a time to wait."""
    group = Group(tiny, 1, max_waiting=1, max_batch_size=1)
    try:
        with connected(group.addresses[0]) as client:
            for i in range(8):
                client.send(submit_message(f"r{i}", [1, 2, 3], max_tokens=500))
            while not (message := client.next()).HasField("refused"):
                pass  # how many were taken, and said something, before the rest came, is the machine's affair
        assert (pb.REFUSAL_REASON_OVERLOADED, True) == (message.refused.reason, message.refused.retry_after_ms > 0)
    finally:
        group.stop()


def test_a_worker_says_how_full_it_is_and_how_long_its_queue(tiny: Path) -> None:
    """With its heartbeats, for the autoscaler; nobody waits any more once all run or are gone."""
    group = Group(tiny, 1, max_batch_size=1)
    worker = group.workers[0]
    try:
        with connected(group.addresses[0]) as client:
            for name in ("runs", "waits"):
                client.send(submit_message(name, random_tokens(200, 1000, seed=1), max_tokens=600))
            next(client.outputs("runs"))
            while not (first := worker.word()).waiting:
                assert first.running == 1
            assert first.kv_used >= 200 / 4096
            second = worker.word()
            assert 0 < first.queue_seconds < second.queue_seconds
        while (last := worker.word()).running or last.waiting:
            time.sleep(0.01)  # the stream is gone, and with it what it asked for
        assert (0.0, 0.0) == (last.queue_seconds, last.kv_used)
    finally:
        group.stop()


def test_a_lost_peer_that_nobody_replaces_answers_everybody(tiny: Path) -> None:
    """When a rank leaves in the middle, the other waits for a new epoch with its requests; when none comes in time, it
    ends them with a typed reason and takes no more."""
    group = Group(tiny, 2, epoch_patience=0.5)
    try:
        with connected(group.addresses[0]) as client:
            client.send(submit_message("doomed", [1, 2, 3], max_tokens=4000))
            next(client.outputs("doomed"))
            loop = group.workers[1]._loop
            assert loop is not None
            loop.engine.exchange.close()  # the sockets end, as when the process dies
            while not (message := client.next()).HasField("refused"):
                pass
            assert message.refused.reason == pb.REFUSAL_REASON_UNAVAILABLE
            assert not client.stub.GetStatus(pb.GetStatusRequest()).ready
            client.send(submit_message("late", [1, 2, 3]))
            assert client.next().refused.reason == pb.REFUSAL_REASON_UNAVAILABLE
    finally:
        group.stop()


def test_a_draining_worker_takes_nothing_new_and_ends_what_it_has(pair: Group) -> None:
    """A new request is refused as unavailable, to be tried elsewhere; the running one goes on to its end."""
    with connected(pair.addresses[0]) as client:
        client.send(submit_message("running", [1, 2, 3], max_tokens=60))
        outputs = client.outputs("running")
        next(outputs)
        pair.workers[0].drain()
        with connected(pair.addresses[0]) as other:
            other.send(submit_message("new", [1, 2, 3]))
            assert other.next().refused.reason == pb.REFUSAL_REASON_UNAVAILABLE
        assert list(outputs)[-1].finish == pb.SEQUENCE_FINISH_LENGTH
        pair.workers[0].drain(False)
        assert client.stub.GetStatus(pb.GetStatusRequest()).ready
