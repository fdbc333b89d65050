"""A worker: claims jobs, runs their attempts, shows that it lives, and takes over from workers that do not.

One process, one thread. It may be killed at any moment: its attempts die with it, and the next worker goes on from
their checkpoints. When it is asked to stop it stops its attempts with a checkpoint and gives the jobs back.
"""

from __future__ import annotations

import contextlib
import logging
import os
import platform
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass

from sqlalchemy import delete, insert, select, update
from sqlalchemy.exc import OperationalError

from nlp_distill.errors import NlpDistillError
from nlp_distill.service.attempt import Attempt, furthest
from nlp_distill.service.executors.contract import Executor, Unavailable
from nlp_distill.service.home import Home, new_id, now_ms
from nlp_distill.service.launch import prepare
from nlp_distill.service.processes import alive, signature
from nlp_distill.service.reasons import Ending, Reason, of_error
from nlp_distill.service.store.queue import TERMINAL, Claim, Fenced, Queue, WrongStatus
from nlp_distill.service.store.tables import files, idempotency, jobs, workers

log = logging.getLogger("nlp_distill.worker")
DAY_MS, REMOVED_AT_ONCE = 86_400_000, 5


@dataclass(frozen=True)
class WorkerSettings:
    """Seconds, counts and permissions of a worker.

    `lease_s`: after so long without a sign of life a worker is given up. `stall_s`: a run that says nothing for so
    long is stopped; above the 30 minutes after which a run stops itself. `retention_days`: jobs that ended before
    are removed; 0 keeps all. `online`: what a recipe names may be fetched from the Hub. `niceness`: how far runs step
    back for the server. `rest_s`: how long nothing is claimed after the executor's place took nothing.
    """

    slots: int = 1
    beat_s: float = 5.0
    lease_s: float = 30.0
    tick_s: float = 0.25
    grace_s: float = 30.0
    stall_s: float = 45 * 60.0
    retention_days: float = 0.0
    online: bool = False
    niceness: int = 5
    rest_s: float = 30.0


SETTINGS = WorkerSettings()


class Worker:
    """Runs attempts of the jobs of a home."""

    def __init__(
        self, home: Home, queue: Queue, executor: Executor, settings: WorkerSettings = WorkerSettings()
    ) -> None:
        self.home, self.queue, self.executor, self.settings = home, queue, executor, settings
        self.prepare = prepare
        self.id = new_id("worker")
        self.attempts: list[Attempt] = []
        self._seen: dict[str, tuple[int, int, float]] = {}
        self._beaten = 0.0
        self._rest_until = 0.0
        self._host = f"{platform.node()}:{os.stat('/proc/self/ns/pid').st_ino}"

    def serve(self, stop: Callable[[], bool], once: bool = False) -> None:
        """Work until asked to stop; `once`: until there is nothing to do."""
        self._sign_in()
        while not stop():
            try:
                self.tick()
            except OperationalError as error:
                # A full disk or a lock: attempts run on, and the lease decides if it lasts.
                log.warning("the database cannot be written: %s", error.orig)
            if once and not self.attempts and not self._waiting():
                break
            time.sleep(self.settings.tick_s)
        self.drain()

    def tick(self) -> None:
        """Look after every attempt; now and then beat and look after others; take a job where there is room."""
        self._advance(draining=False)
        if time.monotonic() - self._beaten >= self.settings.beat_s:
            self._beaten = time.monotonic()
            self.beat()
            self.take_over()
            self.queue.expire()
            self._tidy()
        while self._has_room() and (claim := self.queue.claim(self.id)) is not None:
            self._start(claim)

    def _has_room(self) -> bool:
        return len(self.attempts) < self.settings.slots and time.monotonic() >= self._rest_until

    def drain(self) -> None:
        """Stop all attempts with a checkpoint and give their jobs back."""
        while self.attempts:
            self._advance(draining=True)
            time.sleep(self.settings.tick_s)
        with self.queue.database.writing() as connection:
            connection.execute(delete(workers).where(workers.c.id == self.id))

    def _sign_in(self) -> None:
        process = signature(os.getpid())
        with self.queue.database.writing() as connection:
            connection.execute(
                insert(workers).values(
                    id=self.id,
                    host=self._host,
                    process=process,
                    started_at=now_ms(),
                    seen_at=now_ms(),
                    slots=self.settings.slots,
                )
            )

    def _waiting(self) -> bool:
        with self.queue.database.reading() as connection:
            return any(count for status, count in self.queue.counts(connection).items() if status in ("queued",))

    def _start(self, claim: Claim) -> None:
        try:
            for earlier in claim.before:
                self.executor.reap(earlier, None)
            spec = self.prepare(self.home, claim, self._place, self.settings.online, self.settings.niceness)
            handle = self.executor.submit(spec)
        except Unavailable as error:
            log.warning("%s waits: %s", claim.job_id, error)
            self._rest_until = time.monotonic() + self.settings.rest_s
            self._refuse(claim, Ending("stopped", detail=str(error)))
            return
        except NlpDistillError as error:
            why = of_error([kind.__name__ for kind in type(error).__mro__], str(error))
            self._refuse(claim, Ending("failed", why, f"It could not be started: {error}"))
            return
        except (OSError, LookupError) as error:
            self._refuse(claim, Ending("failed", Reason.PROCESS_LOST, f"It could not be started: {error}"))
            return
        with self.queue.database.reading() as connection:
            deadline = connection.execute(select(jobs.c.deadline_at).where(jobs.c.id == claim.job_id)).scalar()
        limits = (self.settings.grace_s, self.settings.stall_s)
        attempt = Attempt(self.home, self.queue, self.executor, claim, spec, handle, deadline, *limits)
        self.attempts.append(attempt)
        self._guard(attempt, lambda: self.queue.started(claim, handle))

    def _refuse(self, claim: Claim, ending: Ending) -> None:
        # Who took so long to find out may have lost the job meanwhile.
        with contextlib.suppress(Fenced):
            self.queue.finish(claim, ending)

    def _place(self, name: str) -> str:
        """Where an upload or a job's run lies."""
        if name.startswith("job_"):
            return str(self.home.run(name))
        with self.queue.database.reading() as connection:
            ending = connection.execute(select(files.c.ending).where(files.c.id == name)).scalar()
        if ending is None:
            raise LookupError(f"there is no file {name} any more")
        return str(self.home.file(name, ending))

    def _advance(self, draining: bool) -> None:
        wanted = select(jobs.c.id, jobs.c.status).where(jobs.c.worker_id == self.id)
        with self.queue.database.reading() as connection:
            statuses = {row.id: row.status for row in connection.execute(wanted)}
        for attempt in list(self.attempts):
            status = statuses.get(attempt.claim.job_id, "")
            self._guard(attempt, lambda: self._step(attempt, status, draining))  # noqa: B023

    def _step(self, attempt: Attempt, status: str, draining: bool) -> None:
        state = attempt.advance(status, draining)
        if state.kind != "running":
            try:
                ended = attempt.close(state)
            except TimeoutError as error:
                log.warning("%s is looked at again: %s", attempt.claim.job_id, error)
                return
            self.attempts.remove(attempt)
            log.info("%s attempt %d: %s", attempt.claim.job_id, attempt.claim.number, ended)

    def _guard(self, attempt: Attempt, act: Callable[[], object]) -> None:
        """Whoever is fenced ends what it runs, and says nothing more of it."""
        try:
            act()
        except Fenced:
            log.warning("%s was given to another worker", attempt.claim.job_id)
            try:
                self.executor.reap(attempt.claim.attempt_id, attempt.handle)
            except TimeoutError as error:
                log.warning("%s is looked at again: %s", attempt.claim.job_id, error)
                return
            if attempt in self.attempts:
                self.attempts.remove(attempt)

    def beat(self) -> None:
        """Show that this worker and its attempts live."""
        with self.queue.database.writing() as connection:
            connection.execute(update(workers).where(workers.c.id == self.id).values(seen_at=now_ms()))
        for attempt in list(self.attempts):
            self._guard(attempt, lambda: self.queue.beat(attempt.claim, attempt.run_ms))  # noqa: B023

    def take_over(self) -> None:
        """Give up jobs of workers that are gone: their process is dead, or their count stood still for a lease."""
        now, mine = time.monotonic(), {attempt.claim.job_id for attempt in self.attempts}
        with self.queue.database.reading() as connection:
            known = {row.id: row for row in connection.execute(select(workers))}
        owned = [row for row in self.queue.owned() if row.id not in mine]
        self._seen = {job: seen for job, seen in self._seen.items() if job in {row.id for row in owned}}
        for row in owned:
            owner = known.get(row.worker_id)
            seen = self._seen.get(row.id)
            if seen is None or seen[:2] != (row.epoch, row.beat):
                seen = self._seen[row.id] = (row.epoch, row.beat, now)
            gone = row.worker_id == self.id or (
                owner is not None and owner.host == self._host and not alive(owner.process)
            )
            if gone or now - seen[2] >= self.settings.lease_s:
                reached = furthest(self.home.run(row.id))
                if self.queue.give_up(row.id, row.epoch, row.beat, "Its worker is gone.", reached):
                    # On another machine it may still run; what is over for good is claimed by nobody, who would end it.
                    with contextlib.suppress(OSError, NlpDistillError):
                        self.executor.reap(row.attempt_id, None)

    def _tidy(self) -> None:
        """Forget what is old: workers that are gone, keys of requests, jobs beyond their retention."""
        day_ago = now_ms() - DAY_MS
        with self.queue.database.writing() as connection:
            connection.execute(delete(workers).where(workers.c.seen_at < day_ago))
            connection.execute(delete(idempotency).where(idempotency.c.created_at < day_ago))
        if self.settings.retention_days:
            before = now_ms() - int(self.settings.retention_days * DAY_MS)
            old = select(jobs.c.id).where(jobs.c.status.in_(TERMINAL), jobs.c.finished_at < before)
            with self.queue.database.reading() as connection:
                names = list(connection.execute(old.limit(REMOVED_AT_ONCE)).scalars())
            for name in names:
                # Somebody else may have removed it, or begun it again.
                with contextlib.suppress(LookupError, WrongStatus):
                    remove_job(self.home, self.queue, name)


def remove_job(home: Home, queue: Queue, job_id: str) -> None:
    """Forget a job that is over, and its folder. Raises `WrongStatus`, `LookupError`."""
    queue.remove(job_id)
    shutil.rmtree(home.job(job_id), ignore_errors=True)
