"""Jobs: submitted, listed, looked at, asked to stop and to go on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from typing import Annotated, Any

from fastapi import APIRouter, Header, Query, Response
from sqlalchemy import Connection, Row, func, insert, select, update

from nlp_distill.service.api.models import Attempt, Job, JobChange, JobError, JobRequest, Listed, Page, Status
from nlp_distill.service.api.recipes import read_recipe
from nlp_distill.service.api.service import JobId, Reader, Served, Service, Submitter, missing, row_or_missing
from nlp_distill.service.home import now_ms
from nlp_distill.service.reasons import FIXES, Reason
from nlp_distill.service.store.queue import OWNED, WrongStatus
from nlp_distill.service.store.tables import attempts, idempotency, jobs
from nlp_distill.service.store.tokens import Who
from nlp_distill.service.worker import remove_job
from nlp_distill.web.problems import Problem, problems

router = APIRouter(prefix="/v1/jobs", tags=["jobs"])
JOB_ID = r"^job_[0-9a-f]{32}$"
Key = Annotated[
    str | None,
    Header(alias="Idempotency-Key", pattern=r"^[\x21-\x7e]{1,200}$", description="Twice the same: one job."),
]


def seconds(milliseconds: int | None) -> Any:
    """For the wire."""
    return None if milliseconds is None else milliseconds / 1000


def shown_job(connection: Connection, row: Row[Any], duplicate_of: str | None = None) -> Job:
    """A row as the API shows it."""
    count = connection.execute(select(func.count()).where(attempts.c.job_id == row.id)).scalar_one()
    failed = row.status == "failed" and row.reason is not None
    error = JobError(code=row.reason, message=row.detail, fix=FIXES.get(Reason(row.reason), "")) if failed else None
    times = {name: seconds(row._mapping[name]) for name in ("created_at", "started_at", "finished_at", "deadline_at")}
    same = ("id", "name", "tags", "status", "priority", "progress", "resources", "recipe", "recipe_sha256", "parent_id")
    return Job(
        **{name: row._mapping[name] for name in same},
        **times,
        run_s=row.run_ms / 1000,
        error=error,
        attempt=count,
        last_event=row.seq,
        duplicate_of=duplicate_of,
    )


def find(connection: Connection, job_id: str) -> Row[Any]:
    """A job's row. Raises `Problem`."""
    row: Row[Any] = row_or_missing(connection.execute(select(jobs).where(jobs.c.id == job_id)).first(), "job")
    return row


@router.post("", status_code=201, responses=problems(409, 413, 422, 429, 503))
def create(request: JobRequest, response: Response, service: Served, who: Submitter, key: Key = None) -> Job:
    """Submit a job. With an `Idempotency-Key` a request that is sent again makes no second job."""
    recipe = read_recipe(service, request.recipe)
    body = json.dumps(request.model_dump(mode="json"), sort_keys=True)
    given: dict[str, Any] = {
        "name": request.name,
        "tags": request.tags,
        "priority": request.priority,
        "recipe": recipe.resolved(),
        "recipe_sha256": recipe.sha256(),
        "resources": request.resources.model_dump(),
        "deadline_at": now_ms() + request.deadline_s * 1000 if request.deadline_s else None,
    }
    job = submit(service, who, given, key, body)
    response.headers["Location"] = f"/v1/jobs/{job.id}"
    return job


def submit(service: Service, who: Who, given: dict[str, Any], key: str | None, body: str) -> Job:
    """A job, and its key, in one transaction. Raises `Problem`."""
    check_room(service)
    digest = hashlib.sha256(body.encode()).hexdigest()
    with service.database.writing() as connection:
        if key is not None and (before := _answered(connection, who, key, digest)) is not None:
            return before
        waiting = select(func.count()).where(jobs.c.status == "queued")
        if connection.execute(waiting).scalar_one() >= service.limits.waiting:
            detail = f"{service.limits.waiting} jobs wait already; submit this one later."
            raise Problem(429, "queue_full", detail, {"Retry-After": "60"})
        twin = select(jobs.c.id).where(
            jobs.c.recipe_sha256 == given["recipe_sha256"], jobs.c.status.in_(("queued", "paused", *OWNED))
        )
        duplicate_of = connection.execute(twin.limit(1)).scalar()
        job_id = service.queue.submit(connection, **given, token_id=who.token_id)
        if key is not None:
            values = {"token_id": who.token_id, "key": key, "body_sha256": digest, "job_id": job_id}
            connection.execute(insert(idempotency).values(**values, created_at=now_ms()))
        return shown_job(connection, find(connection, job_id), duplicate_of)


def _answered(connection: Connection, who: Who, key: str, digest: str) -> Job | None:
    wanted = select(idempotency).where(idempotency.c.token_id == who.token_id, idempotency.c.key == key)
    row = connection.execute(wanted).first()
    if row is None:
        return None
    if row.body_sha256 != digest:
        raise Problem(422, "key_reused", "This Idempotency-Key came with another body before; take a new one.")
    return shown_job(connection, find(connection, row.job_id))


def check_room(service: Service) -> None:
    """Refuse what would fill the disk. Raises `Problem`."""
    if service.draining or service.free_disk() < service.limits.free_disk:
        detail = "The server is stopping." if service.draining else "The server's disk is nearly full."
        raise Problem(503, "unavailable", f"{detail} Send it again later.", {"Retry-After": "60"})


@router.get("", responses=problems(404, 422))
def listed(
    service: Served,
    _: Reader,
    status: Annotated[list[Status] | None, Query(max_length=9)] = None,
    tag: Annotated[str | None, Query(max_length=60)] = None,
    after: Annotated[str | None, Query(pattern=JOB_ID, description="`next` of the page before.")] = None,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
) -> Page[Job]:
    """Jobs, newest first."""
    wanted = select(jobs).order_by(jobs.c.created_at.desc(), jobs.c.id.desc()).limit(limit + 1)
    if status:
        wanted = wanted.where(jobs.c.status.in_(status))
    if tag is not None:
        among = func.json_each(jobs.c.tags).table_valued("value")
        wanted = wanted.where(select(1).select_from(among).where(among.c.value == tag).exists())
    with service.database.reading() as connection:
        if after is not None:
            last = find(connection, after)
            older = (jobs.c.created_at < last.created_at) | (
                (jobs.c.created_at == last.created_at) & (jobs.c.id < last.id)
            )
            wanted = wanted.where(older)
        rows = connection.execute(wanted).all()
        data = [shown_job(connection, row) for row in rows[:limit]]
    more = len(rows) > limit
    return Page(data=data, has_more=more, next=data[-1].id if more else None)


@router.get("/{job_id}", responses=problems(404, 422))
def show(job_id: JobId, response: Response, service: Served, _: Reader) -> Job:
    """A job as it stands; its ETag changes with what a person may change, and with its status."""
    with service.database.reading() as connection:
        row = find(connection, job_id)
        response.headers["ETag"] = f'"{row.version}"'
        return shown_job(connection, row)


@router.patch("/{job_id}", responses=problems(404, 409, 412, 422))
def change(
    job_id: JobId,
    request: JobChange,
    response: Response,
    service: Served,
    _: Submitter,
    if_match: Annotated[str | None, Header(max_length=100)] = None,
) -> Job:
    """Change name or tags; the priority while the job waits. `If-Match`: only if nobody was faster."""
    values = {name: value for name, value in request.model_dump().items() if value is not None}
    with service.database.writing() as connection:
        row = find(connection, job_id)
        if if_match is not None and if_match not in ("*", f'"{row.version}"'):
            raise Problem(412, "changed_meanwhile", "The job was changed meanwhile; read it again.")
        if "priority" in values and row.status not in ("queued", "paused"):
            raise wrong_status(row.status, "its priority no longer matters")
        if values:
            changed = update(jobs).where(jobs.c.id == job_id)
            connection.execute(changed.values(**values, version=jobs.c.version + 1))
        row = find(connection, job_id)
        response.headers["ETag"] = f'"{row.version}"'
        return shown_job(connection, row)


def wrong_status(status: str, why: str) -> Problem:
    """The job's status does not allow it."""
    return Problem(409, "wrong_status", f"The job is {status}: {why}.")


@router.delete("/{job_id}", status_code=204, responses=problems(404, 409, 422))
def remove(job_id: JobId, service: Served, _: Submitter) -> None:
    """Forget a job that is over, with everything that it made."""
    try:
        remove_job(service.home, service.queue, job_id)
    except WrongStatus as error:
        raise wrong_status(error.status, "cancel it first") from error
    except LookupError as error:
        raise missing("job") from error


def _ask(service: Service, act: Callable[[str], str], job_id: str) -> Job:
    try:
        act(job_id)
    except WrongStatus as error:
        raise wrong_status(error.status, "that cannot be asked of it any more") from error
    except LookupError as error:
        raise missing("job") from error
    with service.database.reading() as connection:
        return shown_job(connection, find(connection, job_id))


@router.post("/{job_id}/cancel", responses=problems(404, 409, 422))
def cancel(job_id: JobId, service: Served, _: Submitter) -> Job:
    """End a job for good. Asking twice changes nothing."""
    return _ask(service, service.queue.cancel, job_id)


@router.post("/{job_id}/pause", responses=problems(404, 409, 422))
def pause(job_id: JobId, service: Served, _: Submitter) -> Job:
    """Stop a job with a checkpoint."""
    return _ask(service, service.queue.pause, job_id)


@router.post("/{job_id}/resume", responses=problems(404, 409, 422))
def resume(job_id: JobId, service: Served, _: Submitter) -> Job:
    """Let a paused job go on."""
    return _ask(service, service.queue.resume, job_id)


@router.post("/{job_id}/retry", responses=problems(404, 409, 422))
def retry(job_id: JobId, service: Served, _: Submitter) -> Job:
    """Let a failed or cancelled job go on from its last checkpoint."""
    return _ask(service, service.queue.retry, job_id)


@router.post("/{job_id}/clone", status_code=201, responses=problems(404, 422, 429, 503))
def clone(job_id: JobId, response: Response, service: Served, who: Submitter, key: Key = None) -> Job:
    """A new job with the same recipe and resources."""
    with service.database.reading() as connection:
        row = find(connection, job_id)
    same = ("name", "tags", "priority", "recipe", "recipe_sha256", "resources")
    given = {name: row._mapping[name] for name in same} | {"parent_id": job_id}
    job = submit(service, who, given, key, f"clone {job_id}")
    response.headers["Location"] = f"/v1/jobs/{job.id}"
    return job


@router.get("/{job_id}/attempts", responses=problems(404, 422))
def attempts_of(job_id: JobId, service: Served, _: Reader) -> Listed[Attempt]:
    """Its executions, in order."""
    with service.database.reading() as connection:
        find(connection, job_id)
        rows = connection.execute(select(attempts).where(attempts.c.job_id == job_id).order_by(attempts.c.number))
        data = [
            Attempt(
                id=row.id,
                number=row.number,
                started_at=seconds(row.started_at),
                finished_at=seconds(row.finished_at),
                ending=row.ending,
                reason=row.reason,
                detail=row.detail,
            )
            for row in rows
        ]
    return Listed(data=data)
