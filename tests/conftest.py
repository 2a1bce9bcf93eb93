"""Fixtures that every area shares."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis
import structlog
from hypothesis import HealthCheck, settings

from shoal.cluster.embedded_redis import EmbeddedRedis

# No test measures time, and a busy machine draws its examples slowly.
settings.register_profile("shoal", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("shoal")


def log_aside() -> None:
    """Log as a process that set nothing up, but never into the output that a test reads: a router of another fixture
    may say something at any time."""
    structlog.reset_defaults()
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.__stderr__))


log_aside()


@pytest.fixture(autouse=True)
def _plain_logs() -> Iterator[None]:
    """A test that sets logging up leaves none behind: its stderr is closed when the next test logs."""
    yield
    log_aside()
    structlog.contextvars.clear_contextvars()


@pytest.fixture
def logged() -> Callable[[], str]:
    """What was logged since the test began, by whomever in this process."""
    text = io.StringIO()
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(text))
    return text.getvalue


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedRedis]:
    """One real server for the whole run, on a unix socket."""
    with EmbeddedRedis(Path(tmp_path_factory.mktemp("redis"))) as server:
        yield server


@pytest.fixture
def redis_url(redis_server: EmbeddedRedis) -> str:
    """URL of the real server, emptied for this test."""
    client = redis.Redis.from_url(redis_server.url)
    client.flushall()
    client.close()
    return redis_server.url
