"""From a client's socket through router, Redis and two expert-parallel Ray workers and back."""

from __future__ import annotations

import contextlib
import json
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlsplit

import grpc
import psutil
import pytest

from shoal.proto.v1 import inference_pb2 as pb
from tests.e2e.served import Client, Served, becomes


def test_a_generation_streams(client: Client) -> None:
    """Tokens come as they are computed: many messages, numbered without a gap, between one first and one last event."""
    begin = time.monotonic()
    arrivals = [(event, time.monotonic() - begin) for event in client.generate(seed=1, tokens=24)]
    kinds = [event.WhichOneof("event") for event, _ in arrivals]
    assert (kinds[0], kinds[-1], set(kinds[1:-1])) == ("started", "done", {"tokens"})
    assert len(kinds) > 12
    offsets = [event.cursor.offset for event, _ in arrivals if event.WhichOneof("event") == "tokens"]
    assert offsets == sorted(set(offsets))
    assert offsets[-1] == 24
    usage = arrivals[-1][0].done.usage
    assert usage.output_tokens == 24


def test_a_seed_gives_the_same_tokens_again(client: Client) -> None:
    """Whatever worker serves it and whatever ran before."""
    assert client.ids(seed=5, tokens=16) == client.ids(seed=5, tokens=16)


def test_sixteen_clients_at_once_get_what_each_gets_alone(client: Client) -> None:
    """Batches change no token: every client's stream equals the same request run by itself."""
    seeds = list(range(16))
    with ThreadPoolExecutor(16) as pool:
        together = list(pool.map(lambda seed: client.ids(seed, tokens=16), seeds))
    assert len({tuple(ids) for ids in together}) == 16, "sixteen different requests"
    for seed in (0, 7, 15):
        assert client.ids(seed, tokens=16) == together[seed]


def test_a_cancelled_stream_stops_the_engine(client: Client) -> None:
    """The worker forgets the sequence at once: nothing more is computed for it."""
    earlier = sum(status.generated_tokens for status in client.workers())
    call = client.generate(seed=2, tokens=4000)
    for event in call:
        if event.WhichOneof("event") == "tokens":
            break
    call.cancel()
    assert becomes(client.idle, within=5.0)
    before = [status.generated_tokens for status in client.workers()]
    time.sleep(0.3)
    assert before == [status.generated_tokens for status in client.workers()]
    assert sum(before) - earlier < 4000


def test_a_deadline_ends_a_stream(client: Client) -> None:
    """The client gets DEADLINE_EXCEEDED in time, and the engine stops."""
    begin = time.monotonic()
    with pytest.raises(grpc.RpcError) as caught:
        list(client.generate(seed=2, tokens=4000, timeout=1.0))
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert time.monotonic() - begin < 3.0
    assert becomes(client.idle, within=5.0)


def test_a_second_turn_knows_the_first(client: Client) -> None:
    """The history comes from Redis: the second prompt holds the first turn, and the session holds both."""
    first = client.chat("My name is Ishmael.", "memory")[-1].done.usage
    second = client.chat("What is my name?", "memory")[-1].done.usage
    alone = client.chat("What is my name?", "")[-1].done.usage
    assert second.input_tokens > alone.input_tokens + 5
    assert second.input_tokens > first.input_tokens
    session = client.session("memory")
    assert session.session.next_turn == 2
    said = [item.message.content for item in session.items if item.message.role == pb.ROLE_USER]
    assert said == ["My name is Ishmael.", "What is my name?"]


def test_two_writers_of_one_turn_cannot_both_win(client: Client) -> None:
    """The turn that the caller expects has gone by: ABORTED, and nothing is added."""
    client.chat("One.", "race")
    with pytest.raises(grpc.RpcError) as caught:
        client.chat("Also one.", "race", expected_turn=0)
    assert caught.value.code() is grpc.StatusCode.ABORTED
    assert client.session("race").session.next_turn == 1


def test_a_wrong_request_is_refused_with_its_field(client: Client) -> None:
    """The router refuses before any worker hears of it."""
    with pytest.raises(grpc.RpcError) as caught:
        client.chat("x", "", reasoning_effort=99)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "reasoning_effort" in (caught.value.details() or "")


def test_each_rank_holds_its_half_of_the_experts_and_computes(client: Client) -> None:
    """All experts of all layers are held exactly once, and tokens of either rank's sequences reach both."""
    client.ids(seed=1, tokens=8)
    workers = client.workers()
    held = [{(load.layer, load.expert) for load in status.expert_loads} for status in workers]
    layers = {layer for layer, _ in held[0]}
    assert {(layer, expert) for layer in layers for expert in range(8)} == held[0] | held[1]
    assert not held[0] & held[1]
    assert all(sum(load.tokens for load in status.expert_loads) > 0 for status in workers)
    assert all(status.identity.ep_size == 2 and status.ready for status in workers)


def test_status_tells_of_every_part(cluster: Served, client: Client) -> None:
    """`shoal status` ends with 0 while all serves, for people and for machines."""
    table = cluster.shoal("status")
    assert table.returncode == 0, table.stderr
    report = json.loads(cluster.shoal("status", "--json").stdout)
    assert report["healthy"]
    assert report["router"] == {"address": client.run.router, "inference": "SERVING", "sessions": "SERVING"}
    (group,) = report["groups"]
    assert [(0, True), (1, True)] == [(worker["rank"], worker["ready"]) for worker in group["workers"]]


def test_chat_once_prints_an_answer(cluster: Served) -> None:
    """The command finds the router of its state directory by itself."""
    result = cluster.shoal("chat", "--once", "Hello", "--max-tokens", "8", "--seed", "1")
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip()


def test_metrics_are_served(client: Client) -> None:
    """Prometheus text, with figures of this router."""
    with urllib.request.urlopen(f"http://{client.run.metrics}/metrics", timeout=10) as answer:
        text = answer.read().decode()
    assert "shoal_" in text


def test_a_second_cluster_cannot_take_the_same_state(cluster: Served) -> None:
    """Its Redis data has one owner."""
    model = client_model(cluster)
    result = cluster.shoal("serve", "--model", model)
    assert result.returncode == 1
    assert "a cluster already runs from" in result.stderr


def client_model(cluster: Served) -> str:
    """The checkpoint that it serves."""
    run = cluster.running()
    assert run is not None, cluster.output()
    return run.model


def test_no_secret_is_among_any_process_s_arguments(cluster: Served) -> None:
    """Everybody on a machine reads those: nobody's have the password of Redis, nor has the log."""
    run = cluster.running()
    assert run is not None
    password = urlsplit(run.redis_url).password or ""
    assert len(password) > 20
    told = [cluster.output()]
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            told.append("\0".join(process.cmdline()))
    assert any(str(cluster.state_dir) in line for line in told[1:])
    assert not [line for line in told if password in line]
