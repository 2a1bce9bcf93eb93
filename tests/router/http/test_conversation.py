"""Which session a response is a turn of, and what is left of one when its responses are deleted."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import permutations
from typing import Any

import pytest

from shoal.router.fleet.scripted_worker import saying
from shoal.router.tokenizer import Tokenizer
from tests.router.byte_tokenizer import ids_of
from tests.router.conftest import StartCluster
from tests.router.http.asking import ask

ANSWER = "<|channel|>final<|message|>yes<|return|>"


@pytest.mark.parametrize("order", list(permutations(range(3))))
async def test_a_conversation_ends_with_its_last_response(
    order: Sequence[int], start_cluster: StartCluster, tokenizer: Tokenizer, redis_url: str
) -> None:
    """It stays while one of them is there, whichever; after that nothing stays of it, wherever it was kept."""
    cluster = await start_cluster(
        saying(ids_of(tokenizer, ANSWER)), redis_url=redis_url, http_port=0, model_name="model"
    )
    address, client = cluster.front.listening.http, cluster.front.router.redis.client
    kept: Any = client
    names: list[str] = []
    for turn in range(3):
        body = {"model": "model", "input": f"canary {turn}", "previous_response_id": names[-1] if names else None}
        names.append((await ask(address, "/v1/responses", body)).json["id"])
    session = f"shoal:session:{{default:{names[0]}}}"
    for number in order:
        assert await kept.hget(session, "next_turn") == b"3"
        assert (await ask(address, f"/v1/responses/{names[number]}", method="DELETE")).status == 200

    assert [] == [key for key in await kept.keys("*") if key != b"shoal:loads"]
