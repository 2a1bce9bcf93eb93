"""Everything of a router that lives in Redis, put together; without a URL all of it is absent."""

from __future__ import annotations

from collections.abc import Callable, Coroutine

from shoal.router.cache.answers import AnswerLimits, Answers
from shoal.router.cache.indexing import Indexing
from shoal.router.cache.prefixes import Prefixes
from shoal.router.cache.remembering import Remembering
from shoal.router.config import RouterConfig
from shoal.router.errors import StartError
from shoal.router.fleet.backend import Backend
from shoal.router.fleet.pool import WorkerPool
from shoal.router.http.responses.records import Records
from shoal.router.journal.claims import Claims
from shoal.router.journal.journal import Journal
from shoal.router.journal.keeper import Keeper
from shoal.router.journal.lease import JournalLimits
from shoal.router.journal.recorder import Recorder
from shoal.router.metrics import Metrics
from shoal.router.sessions.redis_store import RedisSessions
from shoal.router.sessions.store import SessionStore
from shoal.router.sessions.timed import timed
from shoal.router.store.connect import RedisUrlError, connect
from shoal.router.store.ready import RedisNotReadyError, require_ready
from shoal.router.store.script import Client
from shoal.router.store.silence import Silence


class RedisParts:
    """The client and what stands on it."""

    def __init__(self, config: RouterConfig, metrics: Metrics) -> None:
        """Connects later, when first used. Raises StartError for a URL that cannot be used."""
        self.client: Client | None = None
        self.sessions: SessionStore | None = None
        self.records: Records | None = None
        self.journal: Journal | None = None
        self.recorder: Recorder | None = None
        self.claims: Claims | None = None
        self.answers: Answers | None = None
        self.prefixes: Prefixes | None = None
        self._silence = Silence()
        if config.redis_url:
            try:
                self.client = connect(config.redis_url)
            except RedisUrlError as error:
                raise StartError(f"router.redis_url: {error}") from error
            kept = RedisSessions(self.client, config.redis_replicas, config.max_session_ttl_seconds)
            self.sessions = timed(kept, metrics.store_time)
            self.prefixes = Prefixes(self.client) if config.share_prefixes else None
            self.answers = Answers(self.client, AnswerLimits(config.cache_seconds, config.cache_bytes))
            self.records = Records(self.client, config.session_ttl_seconds)
            if config.journal_seconds > 0:
                limits = JournalLimits(config.lease_seconds, config.journal_seconds)
                self.journal = Journal(self.client, limits)
                self.recorder, self.claims = Recorder(self.journal), Claims(self.client)
        self.keeper = Keeper(self.recorder, config.router_id, self._silence)

    async def require_ready(self, seconds: float) -> None:
        """Wait for Redis, at most `seconds`. Raises StartError when it is configured and cannot be used."""
        if self.client is not None:
            try:
                await require_ready(self.client, seconds)
            except RedisNotReadyError as error:
                raise StartError(f"the Redis of router.redis_url cannot be used: {error}") from error

    def around(self, pool: WorkerPool) -> Backend:
        """The workers, behind what is remembered of their work."""
        backend: Backend = pool if self.prefixes is None else Indexing(pool, self.prefixes)
        if self.answers is None:
            return backend
        return Remembering(backend, self.answers, pool.numerics_id, self._silence)

    def start(self, keep_running: Callable[[str, Coroutine[None, None, None]], None]) -> None:
        """Begin what runs in the background."""
        if self.recorder is not None:
            keep_running("journal", self.recorder.run())

    async def close(self) -> None:
        """Let go of what others may take over, and of the connections."""
        if self.recorder is not None:
            await self.recorder.close()
        if self.client is not None:
            await self.client.aclose()
