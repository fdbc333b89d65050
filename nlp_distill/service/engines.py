"""Models of finished jobs, answering: an engine a variant, started when it is asked, ended when nobody asks."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, field

from nlp_distill.errors import EngineUnfit, NlpDistillError, VariantUnknown
from nlp_distill.service.home import Home
from nlp_distill.serving.catalog import Served, catalog
from nlp_distill.serving.engines import Engine
from nlp_distill.serving.metrics import Metrics
from nlp_distill.web.problems import Problem

MOST_JOBS = 2
"""Jobs whose models are kept in memory."""
IDLE_S = 300.0
LOOK_S = 5.0
THREADS = 1
MOST_ROWS = 64


@dataclass
class _Running:
    engines: list[Engine]
    stack: AsyncExitStack
    busy: int = 0
    asked: float = field(default_factory=time.monotonic)


def models_of(home: Home, job_id: str) -> list[Served]:
    """The teacher, where the job has one, and the recommended student. Raises `Problem`."""
    run = home.run(job_id)
    try:
        student = catalog([f"student={run}"])
        with contextlib.suppress(VariantUnknown):
            return [*catalog([f"teacher={run}"], ["teacher"]), *student]
        return student
    except NlpDistillError as error:
        raise Problem(
            409, "model_unfit", f"This job's model cannot be asked: {error}".replace(f"{run}", "it")
        ) from error


class Engines:
    """The engines of a home's jobs; the models of a few jobs are kept."""

    def __init__(self, home: Home) -> None:
        self.home = home
        self._running: dict[str, _Running] = {}
        self._changing = asyncio.Lock()

    @contextlib.asynccontextmanager
    async def of(self, job_id: str) -> AsyncIterator[list[Engine]]:
        """A job's engines, which stay while the block lasts. Raises `Problem`."""
        async with self._changing:
            running = self._running.get(job_id) or await self._start(job_id)
            running.busy += 1
        try:
            yield running.engines
        finally:
            running.busy -= 1
            running.asked = time.monotonic()

    async def _start(self, job_id: str) -> _Running:
        models = await asyncio.to_thread(models_of, self.home, job_id)
        idle = sorted((one for one in self._running.items() if not one[1].busy), key=lambda one: one[1].asked)
        for name, _ in idle[: max(0, len(self._running) - MOST_JOBS + 1)]:
            await self._end(name)
        if len(self._running) >= MOST_JOBS:
            raise Problem(429, "busy", "The models of other jobs are being asked; ask again.", {"Retry-After": "5"})
        stack, metrics = AsyncExitStack(), Metrics()
        try:
            engines = [Engine(model, THREADS, MOST_ROWS, metrics) for model in models]
            for engine in engines:
                await stack.enter_async_context(engine.running())
        except EngineUnfit as error:
            await stack.aclose()
            raise Problem(409, "model_unfit", str(error)) from error
        except BaseException:
            await stack.aclose()
            raise
        self._running[job_id] = _Running(engines, stack)
        return self._running[job_id]

    async def _end(self, job_id: str) -> None:
        await self._running.pop(job_id).stack.aclose()

    async def run(self) -> None:
        """End what nobody asks any more; until cancelled."""
        while True:
            await asyncio.sleep(LOOK_S)
            async with self._changing:
                for name, running in list(self._running.items()):
                    if not running.busy and time.monotonic() - running.asked > IDLE_S:
                        await self._end(name)

    async def close(self) -> None:
        """End all."""
        for name in list(self._running):
            await self._end(name)
