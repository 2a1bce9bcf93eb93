"""All workers of a router as one backend: chooses one per sequence and tries another while no token was delivered."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Iterable
from dataclasses import dataclass, replace

from shoal.router.errors import NoWorkerError, WorkerLostError, WorkersBusyError
from shoal.router.fleet.backend import Accepted, ModelFacts, Tokens, Work
from shoal.router.fleet.policy import choose
from shoal.router.fleet.worker_link import LinkSettings, WorkerLink

_MAX_TRIES = 3
_RETRY_AFTER_MS = 500


@dataclass(frozen=True, slots=True)
class Member:
    """A worker that exists, and whether it may be given work."""

    address: str
    ready: bool = True


class WorkerPool:
    """A `Backend` over the workers that membership names."""

    def __init__(self, settings: LinkSettings, wait_seconds: float) -> None:
        """`wait_seconds`: how long a request waits for a first ready worker."""
        self._settings = settings
        self._wait_seconds = wait_seconds
        self._links: dict[str, WorkerLink] = {}
        self._ready: frozenset[str] = frozenset()
        self._leaving: dict[asyncio.Task[None], WorkerLink] = {}
        self._turn = 0
        self._changed = asyncio.Event()

    def set_members(self, members: Iterable[Member]) -> None:
        """Connect to who is new, let go of who left once nothing of ours runs there."""
        wanted = {member.address: member for member in members}
        for address in [address for address in self._links if address not in wanted]:
            link = self._links.pop(address)
            leaving = asyncio.create_task(self._let_go(link))
            self._leaving[leaving] = link
            leaving.add_done_callback(self._leaving.pop)
        for address in wanted:
            if address not in self._links:
                self._links[address] = WorkerLink(address, self._settings, self._changed.set)
        self._ready = frozenset(address for address, member in wanted.items() if member.ready)
        self._changed.set()

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
        """See `Backend`. Until the first token another worker may still be tried: nobody can tell the difference."""
        await self.wait_ready()
        tried: set[str] = set()
        accepted = delivered = False
        while True:
            link = self._choose(work.request_id, tried)
            tried.add(link.address)
            try:
                async with contextlib.aclosing(
                    link.submit(replace(work, attempt=work.attempt + len(tried) - 1))
                ) as outputs:
                    async for output in outputs:
                        if isinstance(output, Accepted) and accepted:
                            continue
                        accepted = True
                        delivered = delivered or (isinstance(output, Tokens) and output.ids != ())
                        yield output
                    return
            except (WorkerLostError, WorkersBusyError):
                # Migration after the first token goes here: prompt plus what was delivered, from `start_offset` on.
                if delivered or len(tried) == _MAX_TRIES or not self._untried(tried):
                    raise

    async def close(self) -> None:
        """Disconnect from everybody."""
        self.set_members(())
        leaving = dict(self._leaving)
        for task in leaving:
            task.cancel()
        # The links too: a task that is cancelled before it began does not even come to its `finally`.
        await asyncio.gather(*leaving, *(link.close() for link in leaving.values()), return_exceptions=True)

    def _untried(self, tried: set[str]) -> list[WorkerLink]:
        return [link for link in self.eligible() if link.address not in tried]

    def _choose(self, request_id: str, tried: set[str]) -> WorkerLink:
        """The worker that has a sibling already (one prompt's choices share its KV), else the least loaded."""
        untried = self._untried(tried)
        if (siblings := next((link for link in untried if link.serves(request_id)), None)) is not None:
            return siblings
        chosen = choose([link.load for link in untried], self._turn)
        self._turn += 1
        if chosen is None:
            raise NoWorkerError("no worker is ready", retry_after_ms=_RETRY_AFTER_MS)
        return self._links[chosen.address]

    @staticmethod
    async def _let_go(link: WorkerLink) -> None:
        try:
            await link.idle.wait()
        finally:
            await link.close()
