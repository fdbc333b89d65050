"""Streams of events: told when something was committed, they read it from the database, together where they can."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from typing import Any

from sqlalchemy.exc import OperationalError

from nlp_distill.service.store import journal
from nlp_distill.service.store.database import Database

POLL_S = 0.2
BATCH = 200
log = logging.getLogger(__name__)

News = tuple[list[dict[str, Any]], str]
"""Events, and the job's status when they were read; `gone` where there is no job any more."""


class Feed:
    """Wakes whoever waits for events of a job. One look at the database a fifth of a second, however many wait."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.of_tokens: Counter[str] = Counter()
        self._waiting: dict[str, set[asyncio.Event]] = {}
        self._heads: dict[str, tuple[int, str]] = {}
        self._asked: dict[str, dict[int, asyncio.Future[News]]] = {}
        self._closing = False

    async def run(self) -> None:
        """Look until cancelled."""
        while True:
            await asyncio.sleep(POLL_S)
            try:
                if self._waiting:
                    self._wake(await asyncio.to_thread(self._look, list(self._waiting)))
            except OperationalError as error:
                log.warning("the database cannot be read: %s", error.orig)

    def _look(self, job_ids: list[str]) -> dict[str, tuple[int, str]]:
        with self.database.reading() as connection:
            return journal.heads(connection, job_ids)

    def _wake(self, heads: dict[str, tuple[int, str]]) -> None:
        for job_id, bells in self._waiting.items():
            if heads.get(job_id) != self._heads.get(job_id):
                self._asked.pop(job_id, None)
                for bell in bells:
                    bell.set()
        self._heads = heads

    async def news(self, job_id: str, after: int) -> News:
        """Up to `BATCH` events behind a number. Between two rings of its bell all that ask the same share one look.

        Whatever is committed after that look rings the bell.
        """
        asked = self._asked.setdefault(job_id, {})
        if after not in asked:
            asked[after] = asyncio.ensure_future(asyncio.to_thread(self._read, job_id, after))
        try:
            rows, status = await asyncio.shield(asked[after])
        except Exception:
            asked.pop(after, None)
            raise
        if len(rows) == BATCH:
            # Of the past, which is read once and may be long.
            asked.pop(after, None)
        return rows, status

    def _read(self, job_id: str, after: int) -> News:
        with self.database.reading() as connection:
            rows = journal.read(connection, job_id, after, BATCH)
            return rows, journal.heads(connection, [job_id]).get(job_id, (0, "gone"))[1]

    @property
    def closing(self) -> bool:
        """Whether the server goes down, so that streams end."""
        return self._closing

    def close(self) -> None:
        """End all streams."""
        self._closing = True
        for bells in self._waiting.values():
            for bell in bells:
                bell.set()

    @contextlib.asynccontextmanager
    async def listen(self, job_id: str) -> AsyncIterator[asyncio.Event]:
        """A bell that rings when the job has news."""
        bell = asyncio.Event()
        self._waiting.setdefault(job_id, set()).add(bell)
        try:
            yield bell
        finally:
            bells = self._waiting[job_id]
            bells.discard(bell)
            if not bells:
                del self._waiting[job_id]
                self._heads.pop(job_id, None)
                self._asked.pop(job_id, None)

    @contextlib.contextmanager
    def counted(self, token_id: str) -> Iterator[None]:
        """Count a stream while it is open."""
        self.of_tokens[token_id] += 1
        try:
            yield
        finally:
            self.of_tokens[token_id] -= 1
            self.of_tokens += Counter()
