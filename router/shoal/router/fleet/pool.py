"""All workers of a router as one backend: chooses one per sequence, and another that goes on when it is lost."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, Callable, Iterable
from dataclasses import dataclass

import structlog

from shoal.router.errors import NoWorkerError, WorkerFaultError, WorkerLostError, WorkersBusyError
from shoal.router.fleet.backend import Accepted, ModelFacts, Tokens, Work
from shoal.router.fleet.migration import Bounds, Candidate, Migration
from shoal.router.fleet.policy import choose
from shoal.router.fleet.worker_link import LinkSettings, WorkerLink

_RETRY_AFTER_MS = 500

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Member:
    """A worker that exists."""

    address: str
    ready: bool = True
    """Whether it may be given work."""
    draining: bool = False
    """Whether what runs there should go on elsewhere."""


class WorkerPool:
    """A `Backend` over the workers that membership names."""

    def __init__(
        self,
        settings: LinkSettings,
        wait_seconds: float,
        *,
        bounds: Bounds | None = None,
        clock: Callable[[], float] = time.monotonic,
        migrated: Callable[[str, float], None] = lambda reason, seconds: None,
    ) -> None:
        """`wait_seconds`: how long a request waits for a first ready worker. `migrated` hears, with the first token
        after a loss, why it was and how long the reader waited."""
        self._settings = settings
        self._wait_seconds = wait_seconds
        self._bounds = bounds or Bounds()
        self._clock, self._migrated = clock, migrated
        self._links: dict[str, WorkerLink] = {}
        self._ready: frozenset[str] = frozenset()
        self._draining: frozenset[str] = frozenset()
        self._leaving: dict[asyncio.Task[None], WorkerLink] = {}
        self._turn = 0
        self._changed = asyncio.Event()

    def set_members(self, members: Iterable[Member]) -> None:
        """Connect to who is new, let go of who left. What runs on one that left or drains goes on at another that
        computes the same; while there is none it goes on where it is."""
        wanted = {member.address: member for member in members}
        for address in [address for address in self._links if address not in wanted]:
            link = self._links.pop(address)
            leaving = asyncio.create_task(self._let_go(link))
            self._leaving[leaving] = link
            leaving.add_done_callback(self._leaving.pop)
        for address in wanted:
            if address not in self._links:
                self._links[address] = WorkerLink(address, self._settings, self._on_change)
        self._ready = frozenset(a for a, member in wanted.items() if member.ready and not member.draining)
        self._draining = frozenset(a for a, member in wanted.items() if member.draining)
        self._on_change()

    @property
    def known(self) -> int:
        """Workers that exist, as far as membership says."""
        return len(self._links)

    @property
    def connected(self) -> int:
        """Those that answer."""
        return sum(link.connected for link in self._links.values())

    def eligible(self) -> list[WorkerLink]:
        """Workers that can be given work now."""
        return [link for address, link in self._links.items() if link.connected and address in self._ready]

    def model(self) -> ModelFacts | None:
        """See `Backend`. The smallest context and vocabulary, so that any worker can serve the request."""
        facts = [facts for link in self.eligible() if (facts := link.facts) is not None]
        if not facts:
            return None
        context, vocabulary = min(f.max_context for f in facts), min(f.vocab_size for f in facts)
        return ModelFacts(context, vocabulary, facts[0].eos_token_ids)

    def numerics_id(self) -> str:
        """What all workers that serve compute with; empty when they differ, or none serves."""
        found = {link.numerics_id for link in self.eligible()}
        return found.pop() if len(found) == 1 else ""

    async def wait_ready(self) -> ModelFacts:
        """See `Backend`."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._wait_seconds):
                while self.model() is None:
                    self._changed.clear()
                    await self._changed.wait()
        if (facts := self.model()) is None:
            raise NoWorkerError("no worker is ready", retry_after_ms=_RETRY_AFTER_MS)
        return facts

    async def submit(self, work: Work) -> AsyncGenerator[Accepted | Tokens, None]:
        """See `Backend`. A worker that is lost is replaced by another, and the reader cannot tell but by the pause."""
        await self.wait_ready()
        migration = Migration(work, self._bounds)
        lost: tuple[str, float] | None = None  # why and when, until the next token
        while True:
            link = await self._next(migration, work)
            try:
                async with contextlib.aclosing(link.submit(migration.next_work())) as outputs:
                    async for output in outputs:
                        if lost is not None and isinstance(output, Tokens) and output.ids:
                            self._migrated(lost[0], self._clock() - lost[1])
                            lost = None
                        if (told := migration.passes(output)) is not None:
                            yield told
                return
            except (WorkerLostError, WorkersBusyError, WorkerFaultError) as error:
                lost = lost or (error.reason, self._clock())
                migration.failed(link.address, error, self._clock())
                _log.info("sequence_moves", choice=work.choice, tokens=migration.delivered, problem=str(error))

    async def close(self) -> None:
        """Disconnect from everybody."""
        self.set_members(())
        leaving = dict(self._leaving)
        for task in leaving:
            task.cancel()
        # The links too: a task that is cancelled before it began does not even come to its `finally`.
        await asyncio.gather(*leaving, *(link.close() for link in leaving.values()), return_exceptions=True)

    async def _next(self, migration: Migration, work: Work) -> WorkerLink:
        """The worker that goes on. Raises what the reader is told when there is none and none is worth waiting for."""
        while True:
            able = [link for link in self._links.values() if self._can_hold(link, work)]
            eligible = self.eligible()
            candidates = [Candidate(link.address, link.numerics_id, link in eligible) for link in able]
            chosen = migration.choose_among(candidates, self._clock())
            if chosen:
                return self._choose(work.request_id, [self._links[address] for address in chosen])
            self._changed.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(migration.pause()):
                    await self._changed.wait()

    @staticmethod
    def _can_hold(link: WorkerLink, work: Work) -> bool:
        """Whether the sequence, however long it gets, fits there; yes when it was never connected."""
        facts = link.facts
        given = sum(len(run.ids) for run in work.prompt) - work.start_offset
        return facts is None or given + work.limits.max_tokens <= facts.max_context

    def _choose(self, request_id: str, links: list[WorkerLink]) -> WorkerLink:
        """The worker that has a sibling already (one prompt's choices share its KV), else the least loaded."""
        if (siblings := next((link for link in links if link.serves(request_id)), None)) is not None:
            return siblings
        chosen = choose([link.load for link in links], self._turn)
        assert chosen is not None, "there are links to choose from"
        self._turn += 1
        return self._links[chosen.address]

    def _on_change(self) -> None:
        """Somebody came, went, or is to be left."""
        kinds = {link.numerics_id for link in self.eligible()}
        for link in [*self._leaving.values(), *(self._links[address] for address in self._draining)]:
            if link.numerics_id in kinds:
                link.hand_over(f"worker {link.address} is leaving")
        self._changed.set()

    @staticmethod
    async def _let_go(link: WorkerLink) -> None:
        try:
            await link.idle.wait()
        finally:
            await link.close()
