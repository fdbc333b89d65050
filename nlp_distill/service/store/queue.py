"""The life of a job: who may work on it, and what each request and each ending makes of it.

    queued → starting → running → succeeded | failed
       ↑         └────────┴─→ pausing → paused, cancelling → cancelled
       └── an infrastructure failure, a worker that stops; `resume` and `retry` of a person

One worker owns a job at a time. Claiming raises the job's epoch, and everything that its owner writes names that
epoch: an owner that was given up for lost writes nothing any more (`Fenced`). An owner shows that it is alive by
counting `beat` up; whoever watches a count stand still for long enough, by a clock of its own that never jumps, may
give it up. No two clocks are ever compared.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Connection, Row, delete, func, insert, select, update

from nlp_distill.service.home import new_id, now_ms
from nlp_distill.service.reasons import FIXES, Ending, Reason
from nlp_distill.service.store import journal
from nlp_distill.service.store.database import Database
from nlp_distill.service.store.journal import Event
from nlp_distill.service.store.tables import artifacts, attempts, jobs

OWNED = ("starting", "running", "pausing", "cancelling")
TERMINAL = ("succeeded", "failed", "cancelled")
STATUSES = ("queued", *OWNED, "paused", *TERMINAL)


class Fenced(Exception):
    """The job has another owner by now; whoever gets this must end its attempt and write nothing."""


class WrongStatus(Exception):
    """A request that the job's status does not allow."""

    def __init__(self, status: str) -> None:
        super().__init__(status)
        self.status = status


@dataclass(frozen=True)
class Policy:
    """How often an infrastructure failure is tried again without progress, and after how long."""

    most_failures: int = 3
    backoff_ms: int = 10_000

    def wait_ms(self, failures: int, reason: Reason | None) -> int:
        """Before the next attempt. A lost worker is no reason to wait."""
        if reason is Reason.WORKER_LOST:
            return 0
        return int(self.backoff_ms * 3 ** (failures - 1) * random.uniform(0.8, 1.2))


POLICY = Policy()


@dataclass(frozen=True)
class Claim:
    """A job that a worker owns, under an epoch."""

    job_id: str
    epoch: int
    attempt_id: str
    number: int
    recipe: dict[str, Any]
    resources: dict[str, Any]
    run_ms: int = 0
    consumed: int = 0
    before: list[str] = field(default_factory=list)
    """Earlier attempts, of which nothing may be left running."""


@dataclass(frozen=True)
class Artifact:
    """A file of a finished run."""

    path: str
    bytes: int
    sha256: str
    media_type: str


class Queue:
    """Jobs of a database. `clock`: milliseconds since 1970."""

    def __init__(self, database: Database, policy: Policy = POLICY, clock: Callable[[], int] = now_ms) -> None:
        self.database, self.policy, self.clock = database, policy, clock

    def submit(self, connection: Connection, **given: Any) -> str:
        """A new job: name, tags, priority, recipe, recipe_sha256, resources, deadline_at, parent_id, token_id."""
        job_id = new_id("job")
        connection.execute(insert(jobs).values(id=job_id, created_at=self.clock(), status="queued", **given))
        self._say(connection, job_id, "queued")
        return job_id

    def claim(self, worker_id: str) -> Claim | None:
        """Own the next job: the highest priority, then the oldest."""
        now = self.clock()
        with self.database.reading() as connection:
            if connection.execute(_next(now)).first() is None:
                return None
        with self.database.writing() as connection:
            job = connection.execute(_next(now)).first()
            if job is None:
                return None
            attempt_id = new_id("attempt")
            before = select(attempts.c.id).where(attempts.c.job_id == job.id).order_by(attempts.c.number)
            earlier = [str(name) for name in connection.execute(before).scalars()]
            epoch, number = job.epoch + 1, len(earlier) + 1
            self._set(
                connection,
                job.id,
                "starting",
                epoch=epoch,
                worker_id=worker_id,
                attempt_id=attempt_id,
                started_at=job.started_at or now,
            )
            connection.execute(
                insert(attempts).values(
                    id=attempt_id, job_id=job.id, number=number, epoch=epoch, worker_id=worker_id, started_at=now
                )
            )
            self._say(connection, job.id, "starting", attempt=number)
            run_ms, consumed = job.run_ms, job.consumed
            return Claim(job.id, epoch, attempt_id, number, job.recipe, job.resources, run_ms, consumed, earlier)

    def started(self, claim: Claim, handle: str) -> None:
        """The attempt's processes run. Raises `Fenced`."""
        with self.database.writing() as connection:
            job = self._owned(connection, claim)
            connection.execute(update(attempts).where(attempts.c.id == claim.attempt_id).values(handle=handle))
            if job.status == "starting":
                self._set(connection, claim.job_id, "running")
                self._say(connection, claim.job_id, "running", attempt=claim.number)

    def beat(self, claim: Claim, run_ms: int) -> str:
        """Show that the owner is alive, and how long the job ran in all; the job's status. Raises `Fenced`."""
        with self.database.writing() as connection:
            job = self._owned(connection, claim)
            values = {"beat": jobs.c.beat + 1, "run_ms": run_ms}
            connection.execute(update(jobs).where(jobs.c.id == claim.job_id).values(values))
            return str(job.status)

    def take_in(
        self,
        claim: Claim,
        happened: Sequence[Event],
        points: Sequence[journal.Point],
        consumed: int,
        progress: dict[str, Any] | None,
    ) -> None:
        """Keep what a run said, together with how much of its file was read: all or nothing. Raises `Fenced`."""
        with self.database.writing() as connection:
            self._owned(connection, claim)
            journal.append(connection, claim.job_id, happened)
            journal.plot(connection, claim.job_id, points)
            values: dict[str, Any] = {"consumed": consumed} | ({"progress": progress} if progress else {})
            connection.execute(update(jobs).where(jobs.c.id == claim.job_id).values(values))

    def finish(self, claim: Claim, ending: Ending, furthest: str = "", made: Sequence[Artifact] = ()) -> str:
        """The attempt is over and nothing of it runs; what became of the job. Raises `Fenced`."""
        with self.database.writing() as connection:
            return self._finish(connection, self._owned(connection, claim), ending, furthest, made)

    def give_up(self, job_id: str, epoch: int, beat: int, detail: str, furthest: str = "") -> bool:
        """Take a job from an owner whose count stood still; False when it did something meanwhile.

        `furthest`: how far its run came, by which an attempt that made progress is no failure.
        """
        with self.database.writing() as connection:
            job = self._row(connection, job_id)
            if job is None or (job.epoch, job.beat) != (epoch, beat) or job.status not in OWNED:
                return False
            self._finish(connection, job, Ending("failed", Reason.WORKER_LOST, detail), furthest, ())
            return True

    def _finish(
        self, connection: Connection, job: Row[Any], ending: Ending, furthest: str, made: Sequence[Artifact]
    ) -> str:
        now = self.clock()
        closing: dict[str, Any] = {"finished_at": now, "ending": ending.kind, "detail": ending.detail}
        closing["reason"] = ending.reason.value if ending.reason else None
        connection.execute(update(attempts).where(attempts.c.id == job.attempt_id).values(closing))
        failures = (0 if furthest > job.furthest else job.failures) + (ending.cause == "infra")
        status, reason, detail = self._outcome(job.status, ending, failures)
        wait = self.policy.wait_ms(failures, ending.reason) if status == "queued" and ending.kind == "failed" else 0
        self._set(
            connection,
            job.id,
            status,
            # Whoever owned it is fenced from now on.
            epoch=job.epoch + 1,
            worker_id=None,
            failures=failures,
            furthest=max(furthest, job.furthest),
            reason=reason.value if reason else None,
            detail=detail,
            not_before=now + wait if wait else 0,
            finished_at=now if status in TERMINAL else None,
        )
        if status == "succeeded":
            for artifact in made:
                values = {**artifact.__dict__, "id": new_id("artifact"), "job_id": job.id}
                connection.execute(insert(artifacts).values(values))
        said = detail if status == "failed" else ending.detail
        why = reason or ending.reason
        self._say(connection, job.id, status, said, **({"reason": why.value} if why else {}))
        return status

    def _outcome(self, status: str, ending: Ending, failures: int) -> tuple[str, Reason | None, str]:
        if status == "cancelling":
            return "cancelled", Reason.CANCELLED_BY_USER, ""
        if ending.kind == "ok":
            return "succeeded", None, ""
        again = ending.kind == "stopped" or ending.cause == "infra"
        if status == "pausing" and again:
            return "paused", None, ""
        if ending.kind == "stopped":
            return "queued", None, ""
        if ending.cause == "infra":
            if failures < self.policy.most_failures:
                return "queued", None, ""
            said = f"{failures} attempts without progress; the last: {ending.detail}"
            return "failed", Reason.ATTEMPTS_EXHAUSTED, said
        return "failed", ending.reason, ending.detail

    def cancel(self, job_id: str) -> str:
        """End a job for good; at once where nothing runs. Raises `WrongStatus`, `LookupError`."""
        return self._ask(job_id, "cancelled", "cancelling", ("queued", "paused"), ("starting", "running", "pausing"))

    def pause(self, job_id: str) -> str:
        """Stop a job with a checkpoint. Raises `WrongStatus`, `LookupError`."""
        return self._ask(job_id, "paused", "pausing", ("queued",), ("starting", "running"))

    def _ask(self, job_id: str, wanted: str, on_the_way: str, idle: tuple[str, ...], working: tuple[str, ...]) -> str:
        with self.database.writing() as connection:
            job = self._known(connection, job_id)
            if job.status in (wanted, on_the_way):
                return str(job.status)
            if job.status not in (*idle, *working):
                raise WrongStatus(job.status)
            status = wanted if job.status in idle else on_the_way
            ended = {"finished_at": self.clock(), "reason": Reason.CANCELLED_BY_USER.value}
            self._set(connection, job_id, status, **(ended if status == "cancelled" else {}))
            self._say(connection, job_id, status)
            return status

    def resume(self, job_id: str) -> str:
        """Let a paused job go on. Raises `WrongStatus`, `LookupError`."""
        return self._again(job_id, ("paused",), {})

    def retry(self, job_id: str) -> str:
        """Let a failed or cancelled job go on from its last checkpoint. Raises `WrongStatus`, `LookupError`."""
        fresh = {"failures": 0, "reason": None, "detail": "", "finished_at": None, "deadline_at": None, "run_ms": 0}
        return self._again(job_id, ("failed", "cancelled"), fresh)

    def _again(self, job_id: str, allowed: tuple[str, ...], values: dict[str, Any]) -> str:
        with self.database.writing() as connection:
            job = self._known(connection, job_id)
            if job.status == "queued":
                return "queued"
            if job.status not in allowed:
                raise WrongStatus(job.status)
            self._set(connection, job_id, "queued", not_before=0, **values)
            self._say(connection, job_id, "queued")
            return "queued"

    def expire(self) -> list[str]:
        """Fail jobs that wait beyond their deadline; owners see to those that run."""
        late = select(jobs.c.id).where(jobs.c.status.in_(("queued", "paused")), jobs.c.deadline_at <= self.clock())
        with self.database.reading() as connection:
            if connection.execute(late.limit(1)).first() is None:
                return []
        with self.database.writing() as connection:
            ended = [str(job_id) for job_id in connection.execute(late).scalars()]
            for job_id in ended:
                detail = "Its deadline passed before it was done."
                why = Reason.DEADLINE.value
                self._set(connection, job_id, "failed", reason=why, detail=detail, finished_at=self.clock())
                self._say(connection, job_id, "failed", detail, reason=why)
            return ended

    def owned(self) -> list[Row[Any]]:
        """Jobs that have an owner: id, epoch, beat, worker_id, attempt_id."""
        wanted = select(jobs.c.id, jobs.c.epoch, jobs.c.beat, jobs.c.worker_id, jobs.c.attempt_id, jobs.c.deadline_at)
        with self.database.reading() as connection:
            return list(connection.execute(wanted.where(jobs.c.status.in_(OWNED))))

    def remove(self, job_id: str) -> None:
        """Forget a job that is over. Raises `WrongStatus`, `LookupError`."""
        with self.database.writing() as connection:
            job = self._known(connection, job_id)
            if job.status not in TERMINAL:
                raise WrongStatus(job.status)
            connection.execute(delete(jobs).where(jobs.c.id == job_id))

    def counts(self, connection: Connection) -> dict[str, int]:
        """Jobs of each status."""
        found = connection.execute(select(jobs.c.status, func.count()).group_by(jobs.c.status))
        return dict.fromkeys(STATUSES, 0) | {str(status): int(number) for status, number in found}

    def _owned(self, connection: Connection, claim: Claim) -> Row[Any]:
        job = self._row(connection, claim.job_id)
        if job is None or job.epoch != claim.epoch or job.status not in OWNED:
            raise Fenced(claim.job_id)
        return job

    def _known(self, connection: Connection, job_id: str) -> Row[Any]:
        job = self._row(connection, job_id)
        if job is None:
            raise LookupError(job_id)
        return job

    def _row(self, connection: Connection, job_id: str) -> Row[Any] | None:
        return connection.execute(select(jobs).where(jobs.c.id == job_id)).first()

    def _set(self, connection: Connection, job_id: str, status: str, **values: Any) -> None:
        values |= {"status": status, "version": jobs.c.version + 1}
        connection.execute(update(jobs).where(jobs.c.id == job_id).values(values))

    def _say(self, connection: Connection, job_id: str, status: str, detail: str = "", **data: Any) -> None:
        why = data.get("reason")
        fix = FIXES.get(Reason(why), "") if why and status == "failed" else ""
        message = f"{status}: {detail}" if detail else status
        happened = Event(
            "status",
            message,
            {"status": status, **data, **({"fix": fix} if fix else {})},
            "error" if status == "failed" else "info",
            self.clock(),
        )
        journal.append(connection, job_id, [happened])


def _next(now: int) -> Any:
    wanted = select(jobs).where(jobs.c.status == "queued", jobs.c.not_before <= now)
    return wanted.order_by(jobs.c.priority.desc(), jobs.c.created_at, jobs.c.id).limit(1)
