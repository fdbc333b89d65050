"""The web process's side of engines: it starts them, asks them, bounds what waits, and starts them anew."""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import os
import sys
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from nlp_distill.errors import EngineUnfit
from nlp_distill.serving import frames
from nlp_distill.serving.catalog import Served
from nlp_distill.serving.metrics import Metrics
from nlp_distill.web.listening import TOKEN_VARIABLE
from nlp_distill.web.problems import Problem

SECRETS = (TOKEN_VARIABLE, "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")
WARM_UP: dict[str, list[Any]] = {
    "classification": ["Warm up."],
    "question_answering": [{"question": "What is warm?", "context": "The engine is warm."}],
    "seq2seq": ["Warm up."],
}
LONGEST_SECONDS = 120.0
"""An engine that owes answers and gives none for so long is started anew."""
LONGEST_PAUSE = 30.0
START_SECONDS = 600.0
STOP_SECONDS = 5.0


@dataclass(frozen=True)
class Answer:
    """JSON as the engine wrote it, and the time that took inside the engine."""

    body: bytes
    seconds: float


@dataclass
class _Waiting:
    future: asyncio.Future[Answer]
    rows: int
    since: float = field(default_factory=time.monotonic)


class Engine:
    """One model's process. `ready`: whether it can answer now."""

    def __init__(self, served: Served, threads: int, most_rows: int, metrics: Metrics) -> None:
        self.served = served
        self.ready = False
        self._threads = threads
        self._most_rows = most_rows
        self._metrics = metrics
        self._waiting: dict[int, _Waiting] = {}
        self._rows = 0
        self._inside = 0
        self._count = 0
        self._row_seconds = 0.01
        self._heard = 0.0
        self._process: asyncio.subprocess.Process | None = None
        metrics.rows.labels(served.id).set_function(lambda: self._rows)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Engine]:
        """The engine's life. Raises `EngineUnfit` where the first start fails."""
        await self._start()
        tasks = [asyncio.create_task(self._live()), asyncio.create_task(self._watch())]
        try:
            yield self
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await self._stop()

    async def ask(self, inputs: Any, parameters: dict[str, Any], rows: int) -> Answer:
        """The pipeline's answer to inputs that hold `rows` rows. Raises `Problem`: 422, 429, 500, 503."""
        name = self.served.id
        self._check_room(self._rows, rows)
        self._count += 1
        number = self._count
        waiting = _Waiting(asyncio.get_running_loop().create_future(), rows)
        self._waiting[number] = waiting
        self._rows += rows
        assert self._process is not None and self._process.stdin is not None
        body = json.dumps({"inputs": inputs, "parameters": parameters}).encode()
        self._process.stdin.write(frames.pack({"id": number}, body))
        outcome = "answered"
        try:
            return await waiting.future
        except Problem as problem:
            outcome = problem.code
            raise
        except asyncio.CancelledError:
            outcome = "aborted"
            raise
        finally:
            self._metrics.requests.labels(name, outcome).inc()
            self._metrics.seconds.labels(name).observe(time.monotonic() - waiting.since)

    # The room: requests that have entered, of which the engine has some, and rows that it has

    def look(self) -> None:
        """Raises `Problem` (429, 503) where one more request has no room."""
        self._check_room(max(self._inside, self._rows), 1)

    def enter(self) -> None:
        """Take a place: what comes at the same moment must not be let in as well. Raises `Problem` (429, 503)."""
        self.look()
        self._inside += 1

    def leave(self) -> None:
        """Give the place back."""
        self._inside -= 1

    def _check_room(self, taken: int, more: int) -> None:
        if not self.ready:
            self._metrics.requests.labels(self.served.id, "engine_not_ready").inc()
            raise not_ready(self.served.id)
        # A request of many rows is let in where nothing waits, whatever the limit.
        if taken and taken + more > self._most_rows:
            self._metrics.requests.labels(self.served.id, "queue_full").inc()
            seconds = max(1, math.ceil(taken * self._row_seconds))
            detail = f"'{self.served.id}' has all it can do ({taken} inputs wait); ask again in {seconds} s."
            raise Problem(429, "queue_full", detail, {"Retry-After": str(seconds)})

    # The process

    async def _start(self) -> None:
        environment = {name: value for name, value in os.environ.items() if name not in SECRETS}
        threads = "1" if self.served.light else str(self._threads)
        self._process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "nlp_distill.serving.engine"),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            env={**environment, "OMP_NUM_THREADS": threads, "TOKENIZERS_PARALLELISM": "false"},
        )
        assert self._process.stdin is not None and self._process.stdout is not None
        served = self.served
        spec = {
            "folder": str(served.folder),
            "variant": served.variant,
            "light": served.light,
            "threads": self._threads,
            "warm_up": WARM_UP.get(served.task, []),
        }
        self._process.stdin.write(frames.pack(spec))
        try:
            frame = await asyncio.wait_for(frames.receive(self._process.stdout), START_SECONDS)
        except asyncio.TimeoutError as error:
            self._process.kill()
            raise EngineUnfit(model=served.id, reason=f"not within {START_SECONDS:g} s") from error
        except BaseException:
            self._process.kill()
            raise
        if frame is None or frame[0]["kind"] != "ready":
            reason = frame[0]["reason"] if frame else f"exit code {await self._process.wait()}"
            raise EngineUnfit(model=served.id, reason=reason)
        self._be(ready=True)

    def _be(self, ready: bool) -> None:
        self.ready = ready
        self._metrics.up.labels(self.served.id).set(int(ready))

    async def _live(self) -> None:
        """Hand out answers; where the process ends, tell those who wait and start it anew, ever more slowly."""
        while True:
            await self._hand_out()
            self._be(ready=False)
            self._give_up()
            pause = 0.0
            while not self.ready:
                self._metrics.restarts.labels(self.served.id).inc()
                await asyncio.sleep(pause)
                pause = min(max(1.0, 2 * pause), LONGEST_PAUSE)
                await self._stop()
                # No memory, no process or no file left now may be there at the next turn.
                with contextlib.suppress(EngineUnfit, OSError):
                    await self._start()

    async def _hand_out(self) -> None:
        assert self._process is not None and self._process.stdout is not None
        name = self.served.id
        while (frame := await frames.receive(self._process.stdout)) is not None:
            self._heard = time.monotonic()
            head, body = frame
            waiting = self._waiting.pop(head["id"])
            self._rows -= waiting.rows
            self._metrics.engine_seconds.labels(name).observe(head["seconds"])
            self._metrics.together.labels(name).observe(head["together"])
            # How long a row keeps the queue waiting; without torch the threads work side by side.
            beside = self._threads if self.served.light else 1
            paid = head["seconds"] / head["together"] / waiting.rows / beside
            self._row_seconds += 0.1 * (paid - self._row_seconds)
            if waiting.future.done():
                continue
            if head["kind"] == "answer":
                waiting.future.set_result(Answer(body, head["seconds"]))
            elif head["kind"] == "refused":
                waiting.future.set_exception(Problem(422, "inputs_unfit", f"The model refuses this: {_sentence(body)}"))
            else:
                detail = "The model broke on this; the server's log has it."
                waiting.future.set_exception(Problem(500, "engine_failed", detail))

    def _give_up(self) -> None:
        for waiting in self._waiting.values():
            if not waiting.future.done():
                waiting.future.set_exception(not_ready(self.served.id))
        self._waiting.clear()
        self._rows = 0

    async def _watch(self) -> None:
        """End a process that owes answers and has said nothing for too long; `_live` does the rest."""
        while True:
            await asyncio.sleep(1.0)
            oldest = next(iter(self._waiting.values()), None)
            quiet = time.monotonic() - max(oldest.since, self._heard) if oldest else 0.0
            if quiet > LONGEST_SECONDS and self._process is not None:
                with contextlib.suppress(ProcessLookupError):
                    self._process.kill()

    async def _stop(self) -> None:
        self._be(ready=False)
        self._give_up()
        if self._process is None or self._process.returncode is not None:
            return
        if self._process.stdin is not None:
            self._process.stdin.close()
        try:
            await asyncio.wait_for(self._process.wait(), STOP_SECONDS)
        except asyncio.TimeoutError:
            self._process.kill()
            await self._process.wait()


def _sentence(body: bytes) -> str:
    """What an engine said of a request, in one line of bounded length."""
    return " ".join(str(json.loads(body)).split())[:300].rstrip(".") + "."


def not_ready(name: str) -> Problem:
    """What a client hears while an engine starts."""
    detail = f"The engine of '{name}' is being started anew; ask again in a second."
    return Problem(503, "engine_not_ready", detail, {"Retry-After": "1"})


@asynccontextmanager
async def running(
    models: Sequence[Served], threads: int, most_rows: int, metrics: Metrics
) -> AsyncIterator[dict[str, Engine]]:
    """All engines, started side by side. Raises `EngineUnfit`."""
    engines = {model.id: Engine(model, threads, most_rows, metrics) for model in models}
    async with AsyncExitStack() as stack:
        started = [stack.enter_async_context(engine.running()) for engine in engines.values()]
        outcomes = await asyncio.gather(*started, return_exceptions=True)
        failed = next((outcome for outcome in outcomes if isinstance(outcome, BaseException)), None)
        if failed is not None:
            raise failed
        yield engines
