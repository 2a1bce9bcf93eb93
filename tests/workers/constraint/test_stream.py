"""Constraints over a worker's real stream."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from shoal.cluster.placement import even_placement
from shoal.proto.v1 import worker_pb2 as pb
from shoal.proto.v1.constraint_pb2 import GRAMMAR_KIND_JSON_SCHEMA, Constraint
from shoal.workers.config import WorkerConfig
from shoal.workers.experts.group import GroupSpec, Member
from shoal.workers.model.token_bytes import read_token_bytes
from shoal.workers.worker import Worker
from tests.workers.clients import StreamClient, connected, submit_message
from tests.workers.constraint.small import choice, constraint, path, regex, written


@pytest.fixture(scope="module")
def address(tiny: Path) -> Iterator[str]:
    """Of a worker that is alone in its group."""
    worker = Worker(WorkerConfig(model=str(tiny), worker_id="w", kv_tokens=2048))
    facts = worker.prepare()
    placement = even_placement(facts.num_layers, facts.num_experts, 1)
    members = (Member(0, facts.worker_id, facts.address),)
    worker.reconfigure(GroupSpec("g", 1, "", 0, members, placement), together=True)
    yield facts.address
    worker.stop()


@pytest.fixture
def client(address: str) -> Iterator[StreamClient]:
    """A router's end."""
    with connected(address) as opened:
        yield opened


@pytest.fixture(scope="module")
def table(tiny: Path) -> tuple[bytes, ...]:
    """Bytes of the tokens."""
    return read_token_bytes(tiny / "tokenizer.json", 1024)


def constrained(name: str, message: Constraint, *, generated: bytes = b"", seed: int = 3) -> pb.Submit:
    """A warm request under a constraint, with bytes that an earlier attempt generated."""
    submit = submit_message(name, [1, 2, 3], max_tokens=100, temperature=1.0, seed=seed)
    if generated:
        submit.prompt.add(role=pb.TOKEN_ROLE_GENERATED, ids=generated)
        submit.start_offset = len(generated)
    submit.constraint.CopyFrom(message)
    return submit


def word(table: tuple[bytes, ...]) -> Constraint:
    """Two letters and a digit, then a control token."""
    return constraint(regex("[a-f]{2}[0-9]", path(table.index(b""), to=1)), choice())


def test_tokens_keep_the_constraint_and_a_replay_goes_on(client: StreamClient, table: tuple[bytes, ...]) -> None:
    """What comes is a word of the language; from its first byte another attempt generates the same rest."""
    client.send(constrained("whole", word(table)))
    ids = [token for output in client.outputs("whole") for token in output.ids]
    text = b"".join(table[token] for token in ids)
    client.send(constrained("again", word(table), generated=text[:1]))
    rest = list(client.outputs("again"))

    assert 3 == len(text)
    assert text[:2].decode().islower()
    assert text[2:].isdigit()
    assert 1 == rest[0].offset
    assert text[1:] == b"".join(table[token] for output in rest for token in output.ids)
    assert pb.SEQUENCE_FINISH_STOP_TOKEN == rest[-1].finish


@pytest.mark.parametrize(
    ("message", "words"),
    [
        (constraint(written(GRAMMAR_KIND_JSON_SCHEMA, '{"type": "strin"}'), choice()), "Invalid type: strin"),
        (constraint(choice(path(5000, to=0))), "token 5000"),
    ],
)
def test_what_cannot_be_compiled_is_refused_before_a_token(
    client: StreamClient, message: Constraint, words: str
) -> None:
    """The answer to the submit is a refusal as invalid, with place and reason."""
    client.send(constrained("bad", message))
    refused = client.next().refused

    assert pb.REFUSAL_REASON_INVALID == refused.reason
    assert "constraint.states[0]" in refused.message
    assert words in refused.message


def test_a_dead_end_is_a_refusal_after_the_tokens(client: StreamClient) -> None:
    """The request ends with a typed reason, not with silence."""
    client.send(constrained("stuck", constraint(regex("abc"), choice())))
    tokens: list[int] = []
    while not (message := client.next()).HasField("refused"):
        tokens += [token for output in message.step.outputs for token in output.ids]

    assert pb.REFUSAL_REASON_INVALID == message.refused.reason
    assert "no token may follow" in message.refused.message
    assert b"abc" == bytes(tokens)
