"""Records on their way to the file: those that wait are written together, with one wait for the disk."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import structlog

from shoal.router.audit.file import AuditFile, AuditFileError
from shoal.router.errors import AuditError

_MOST_WAITING = 4_096
_RETRY_AFTER_MS = 2_000

_log = structlog.get_logger(__name__)


class AuditLog:
    """Belongs to one event loop. `refuse`: a record that cannot be written is an error; otherwise it is counted."""

    def __init__(self, file: AuditFile, *, refuse: bool) -> None:
        self._file, self._refuse = file, refuse
        self._waiting: list[tuple[Mapping[str, Any], asyncio.Future[None]]] = []
        self._writing: asyncio.Task[None] | None = None
        self._thread = ThreadPoolExecutor(1, "audit")  # its own: nobody else's work makes a record wait
        self.lost = 0
        """Records that could not be written since the last that could."""

    async def write(self, record: Mapping[str, Any]) -> None:
        """Returns once it is on the disk. Raises AuditError when it is not and must be."""
        if len(self._waiting) >= _MOST_WAITING:
            self._missed("too many records wait")
            return
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((record, done))
        if self._writing is None:
            self._writing = asyncio.create_task(self._write_all(), name="audit")
        try:
            await asyncio.shield(done)
        except AuditFileError as error:
            self._missed(str(error))

    async def close(self) -> None:
        """Once everything is written."""
        if self._writing is not None:
            await asyncio.gather(self._writing, return_exceptions=True)
        self._thread.shutdown(wait=False)
        self._file.close()

    async def _write_all(self) -> None:
        try:
            while self._waiting:
                batch, self._waiting = self._waiting, []
                records = [record for record, _ in batch]
                if lost := self.lost:
                    records[0] = {**records[0], "lost_before": lost}
                try:
                    await asyncio.get_running_loop().run_in_executor(self._thread, self._file.append, records)
                except Exception as error:  # whatever it is, those that wait must hear of it
                    problem = error if isinstance(error, AuditFileError) else AuditFileError(f"a mistake: {error!r}")
                    for _, done in batch:
                        if not done.done():
                            done.set_exception(problem)
                            done.exception()  # whoever was cancelled meanwhile asks no more
                else:
                    self.lost -= lost  # some may have been lost meanwhile
                    for _, done in batch:
                        if not done.done():
                            done.set_result(None)
        finally:
            self._writing = None

    def _missed(self, problem: str) -> None:
        self.lost += 1
        _log.error("audit_record_lost", problem=problem, lost=self.lost, refused=self._refuse)
        if self._refuse:
            raise AuditError("this request cannot be recorded, so it is not served", retry_after_ms=_RETRY_AFTER_MS)
