"""One stage for all clients: each test says what the model will say."""

from __future__ import annotations

from collections.abc import Iterator

import openai
import pytest

from shoal.cluster.embedded_redis import EmbeddedRedis
from shoal.router.harmony.namespace import Namespace
from shoal.router.tools.runner import ToolOutput
from shoal.router.tools.scripted import ScriptedTool
from tests.clients.stage import Stage
from tests.router.byte_tokenizer import write_tokenizer


@pytest.fixture(scope="package")
def stage(tmp_path_factory: pytest.TempPathFactory, redis_server: EmbeddedRedis) -> Iterator[Stage]:
    """A router with Redis and with a `python` tool that answers 42. It ends with this folder's tests: others share the
    Redis, and it would meet their workers."""
    python = ScriptedTool(Namespace("python", "Runs code."), [ToolOutput("42\n")])
    model = write_tokenizer(tmp_path_factory.mktemp("models") / "gpt-oss-tiny")
    stage = Stage(model, redis_server.url, tools=(python,))
    yield stage
    stage.close()


@pytest.fixture
def client(stage: Stage) -> Iterator[openai.OpenAI]:
    """OpenAI's client, which does not try again by itself."""
    with openai.OpenAI(base_url=stage.url, api_key="none", max_retries=0) as client:
        yield client
