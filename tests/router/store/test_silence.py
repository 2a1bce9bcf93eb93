"""A Redis that neither answers nor refuses: a real server that is stopped, and what its silence costs."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import redis

from shoal.proto.v1 import inference_pb2 as api
from shoal.router.cache.answers import Answers
from shoal.router.errors import SessionsAwayError
from shoal.router.fleet.scripted_worker import saying
from shoal.router.journal.journal import Journal
from shoal.router.limits.config import LimitsConfig
from shoal.router.store import away, silence
from shoal.router.store.silence import Silence
from shoal.router.tokenizer import Tokenizer
from tests.router.byte_tokenizer import ids_of
from tests.router.conftest import StartCluster
from tests.router.store.servers import started
from tests.router.talking import answer_of, events_of, until, user


class Asker:
    """Asks a Redis that does as it is told, at times that it is told."""

    def __init__(self) -> None:
        self.now, self.asked = 0.0, 0
        self.silence = Silence(lambda: self.now)

    async def ask(self, problem: Exception | None) -> bool:
        """Whether it answered; `problem` is why not."""
        try:
            async with self.silence.respected():
                self.asked += 1
                if problem is not None:
                    raise SessionsAwayError("away") from problem
        except SessionsAwayError:
            return False
        return True


async def test_after_silence_one_in_a_while_asks() -> None:
    """Until it is answered; then everybody does."""
    asker = Asker()
    assert not await asker.ask(redis.TimeoutError())
    for _ in range(10):
        assert not await asker.ask(None)
    assert asker.asked == 1
    asker.now += 1.1
    assert not await asker.ask(TimeoutError())
    assert not await asker.ask(None)
    assert asker.asked == 2
    asker.now += 1.1
    assert [await asker.ask(None) for _ in range(3)] == [True] * 3


async def test_a_refusal_is_no_silence() -> None:
    """It costs nobody any time, so everybody asks again."""
    asker = Asker()
    for _ in range(5):
        assert not await asker.ask(redis.ConnectionError())
    assert asker.asked == 5
    assert await asker.ask(None)


async def test_of_many_at_once_one_asks() -> None:
    """While it waits, nobody else begins to."""
    asker, going = Asker(), asyncio.Event()
    await asker.ask(TimeoutError())
    asker.now += 1.1

    async def wait() -> None:
        async with asker.silence.respected():
            asker.asked += 1
            await going.wait()

    waiting = [asyncio.create_task(wait()) for _ in range(20)]
    done, rest = await asyncio.wait(waiting, timeout=0.05)
    going.set()
    await asyncio.gather(*rest)

    assert (len(done), asker.asked) == (19, 2)
    assert all(isinstance(task.exception(), SessionsAwayError) for task in done)


async def test_stateless_requests_do_not_wait_for_a_redis_that_hangs(
    start_cluster: StartCluster, tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first one finds out; those behind it ask neither for a known answer nor for their record, and say that they
    cannot be resumed. When it goes on so does all of that, without a restart."""
    asked: Counter[str] = Counter()
    for kind, name in ((Answers, "get"), (Answers, "put"), (Journal, "accept")):
        monkeypatch.setattr(kind, name, _counted(getattr(kind, name), name, asked))
    monkeypatch.setattr(away, "_LONGEST", 0.3)
    monkeypatch.setattr(silence, "_PAUSE", 3600.0)
    policies = tmp_path / "tenants.toml"
    policies.write_text("[default]\nresponse_cache = true\n")
    with started(tmp_path / "redis") as server:
        cluster = await start_cluster(
            saying(ids_of(tokenizer, "<|channel|>final<|message|>yes<|return|>")),
            redis_url=f"redis://127.0.0.1:{server.port}", limits=LimitsConfig(tenants_file=str(policies)),
        )  # fmt: skip

        async def chat(text: str) -> list[api.ChatResponse]:
            return await events_of(cluster.front.inference.Chat(user(text, sampling=api.Sampling(temperature=0))))

        server.pause()
        await chat("first")
        found = asked.total()
        later = await asyncio.gather(*(chat(f"later {n}") for n in range(20)))
        assert asked.total() == found
        assert [(answer_of(events), events[0].started.resumable) for events in later] == [("yes", False)] * 20
        server.go_on()
        monkeypatch.setattr(silence, "_PAUSE", 0.0)
        cluster.front.router.redis._silence._ask_from = 0.0
        await chat("asks")
        await until(lambda: not cluster.front.router.redis._silence._silent)
        assert (await chat("again"))[0].started.resumable


def _counted(method: Any, name: str, asked: Counter[str]) -> Any:
    async def counting(*arguments: Any, **named: Any) -> Any:
        asked[name] += 1
        return await method(*arguments, **named)

    return counting
