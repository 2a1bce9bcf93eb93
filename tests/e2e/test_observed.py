"""What a running cluster tells of itself: every kind of figure is fed by what really happened."""

from __future__ import annotations

import json
import urllib.request
from typing import Any

import grpc
import pytest

from shoal.proto.v1 import inference_pb2 as api
from shoal.proto.v1 import inference_pb2_grpc, worker_pb2
from tests.e2e.served import Client, Served, becomes

TRACE = "c" * 32


@pytest.fixture(scope="module")
def asked(cluster: Served) -> api.ChatResponse:
    """One turn of a session, part of a trace; its last event."""
    run = cluster.running()
    assert run is not None
    with grpc.insecure_channel(run.router) as channel:
        request = api.ChatRequest(
            messages=[api.Message(role=api.ROLE_USER, content="A secret word: anemone")], session_id="observed",
            sampling=api.Sampling(seed=3), limits=api.Limits(max_tokens=24),
        )  # fmt: skip
        metadata = (("traceparent", f"00-{TRACE}-{'d' * 16}-01"),)
        *_, last = inference_pb2_grpc.InferenceServiceStub(channel).Chat(request, metadata=metadata, timeout=60)
    return last


def scrape(address: str) -> dict[str, float]:
    """Every sample of /metrics by its name, labels added up."""
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=10) as answer:
        lines = answer.read().decode().splitlines()
    made: dict[str, float] = {}
    for line in lines:
        if line and not line.startswith("#") and "_bucket{" not in line:
            name, value = line.split("{")[0].split()[0], float(line.rpartition(" ")[2])
            made[name] = made.get(name, 0.0) + value
    return made


def test_the_router_counts_and_times_what_it_served(client: Client, asked: api.ChatResponse) -> None:
    """Requests, tokens, every duration, the session store, the tenant; and nothing is in hand any more."""
    assert becomes(lambda: scrape(client.run.metrics)["shoal_router_requests_in_flight"] == 0, 10)
    told = scrape(client.run.metrics)
    for name in (
        "shoal_router_requests_total", "gen_ai_server_request_duration_seconds_count",
        "gen_ai_server_time_to_first_token_seconds_count", "gen_ai_server_time_to_first_token_seconds_sum",
        "gen_ai_server_time_per_output_token_seconds_count", "shoal_router_queue_seconds_count",
        "shoal_router_tenant_requests_total", "shoal_router_session_store_seconds_count",
        "shoal_router_workers_ready", "shoal_router_workers_known", "shoal_router_workers_connected",
    ):  # fmt: skip
        assert told[name] > 0, name
    assert told["shoal_router_input_tokens_total"] >= asked.done.usage.input_tokens > 0
    assert told["shoal_router_output_tokens_total"] >= asked.done.usage.output_tokens > 0
    assert 0 == told["shoal_router_tokens_in_flight"]
    assert told["shoal_router_registry_age_seconds"] < 30


def test_a_step_s_time_is_told_by_its_parts(client: Client, asked: api.ChatResponse) -> None:
    """Schedule, attention, exchange, experts, sampling, and what is between them: on every rank, for each takes part
    in every layer."""
    for status in client.workers():
        for phase in ("schedule", "attention", "routing", "exchange", "experts"):
            assert status.step_seconds[phase] > 0, phase
    sampled = [status.step_seconds["sampling"] for status in client.workers() if status.generated_tokens]
    assert sampled
    assert min(sampled) > 0


def test_load_and_memory_of_the_ranks_are_told(client: Client, asked: api.ChatResponse) -> None:
    """Tokens of experts on both ranks, each expert on one; blocks of both kinds of layers; one epoch."""
    statuses = client.workers()
    loads = [{(load.layer, load.expert) for load in status.expert_loads} for status in statuses]
    assert not loads[0] & loads[1]
    assert sum(load.tokens for status in statuses for load in status.expert_loads) > 0
    assert all(s.kv_blocks > 0 and s.sliding_blocks > 0 and s.kv_bytes > 0 for s in statuses)
    assert 1 == len({status.identity.epoch for status in statuses})


def test_a_log_line_has_request_and_trace_and_no_word_of_the_prompt(cluster: Served, asked: api.ChatResponse) -> None:
    """JSON, one object a line."""

    def lines() -> list[dict[str, Any]]:
        found = [json.loads(line) for line in cluster.output().splitlines() if line.startswith("{")]
        return [line for line in found if line.get("trace") == TRACE]

    assert becomes(lambda: any(line["event"] == "request_ended" for line in lines()), 10)
    [ended] = [line for line in lines() if line["event"] == "request_ended"]
    assert ("OK", "Chat", True) == (ended["code"], ended["method"], bool(ended["request"]))
    assert "anemone" not in cluster.output()


def test_status_says_the_same_for_machines(cluster: Served, client: Client, asked: api.ChatResponse) -> None:
    """`shoal status --json`: loads by expert, for the heat map of `shoal top`."""
    done = cluster.shoal("status", "--json")
    assert 0 == done.returncode, done.stderr
    [group] = json.loads(done.stdout)["groups"]
    told = {worker["rank"]: sum(worker["expert_tokens"].values()) for worker in group["workers"]}
    statuses: list[worker_pb2.GetStatusResponse] = client.workers()
    assert told == {s.identity.rank: sum(load.tokens for load in s.expert_loads) for s in statuses}


def test_top_shows_ranks_experts_and_tenants(cluster: Served, asked: api.ChatResponse) -> None:
    """One look, as text."""
    done = cluster.shoal("top", "--rounds", "1")
    assert 0 == done.returncode, done.stderr
    for words in ("epoch", "tokens/s", "experts, over all layers", "tenants", "default"):
        assert words in done.stdout, done.stdout
