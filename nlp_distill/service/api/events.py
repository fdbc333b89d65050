"""What happens to a job: as a list, as a stream, as curves, as its log."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Header, Query, Request
from fastapi.responses import FileResponse, Response, StreamingResponse
from sqlalchemy import select

from nlp_distill.service.api.feed import BATCH
from nlp_distill.service.api.jobs import find, seconds
from nlp_distill.service.api.models import Curve, Curves, Event, Events
from nlp_distill.service.api.service import ATTEMPT_ID, JobId, Reader, Served, Service
from nlp_distill.service.store import journal
from nlp_distill.service.store.queue import OWNED, TERMINAL
from nlp_distill.service.store.tables import attempts
from nlp_distill.service.store.tokens import Who
from nlp_distill.web.problems import Problem, problems

router = APIRouter(prefix="/v1/jobs", tags=["events"])
HEARTBEAT_S = 15.0
STREAM = {"text/event-stream": {"schema": {"type": "string"}}}
TEXT = {"text/plain": {"schema": {"type": "string"}}}


def shown_event(row: dict[str, Any]) -> Event:
    """A row as the API shows it."""
    return Event(**{**row, "created_at": seconds(row["created_at"])})


@router.get(
    "/{job_id}/events",
    response_model=Events,
    responses={200: {"content": STREAM}, **problems(404, 422, 429)},
)
async def events(
    job_id: JobId,
    request: Request,
    service: Served,
    who: Reader,
    after: Annotated[int, Query(ge=0, le=2**53)] = 0,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
    last_event_id: Annotated[str | None, Header(max_length=40)] = None,
) -> Any:
    """Events behind `after`. With `Accept: text/event-stream` they go on as they happen, until the job is over.

    Each is in the database before it is sent, and `id` is its number: give the last one as `Last-Event-ID`, and
    nothing is lost or repeated, whatever was killed meanwhile.
    """

    def read() -> list[dict[str, Any]]:
        with service.database.reading() as connection:
            find(connection, job_id)
            return journal.read(connection, job_id, after, limit + 1)

    if "text/event-stream" in request.headers.get("accept", ""):
        known = last_event_id if last_event_id is not None and last_event_id.isdecimal() else ""
        await asyncio.to_thread(read)
        _check_streams(service, who)
        stream = _stream(service, who, job_id, max(after, int(known[:15] or 0)))
        return StreamingResponse(stream, media_type="text/event-stream", headers={"X-Accel-Buffering": "no"})
    rows = await asyncio.to_thread(read)
    return Events(data=[shown_event(row) for row in rows[:limit]], has_more=len(rows) > limit)


def _check_streams(service: Service, who: Who) -> None:
    open_ones, limits = service.feed.of_tokens, service.limits
    if open_ones[who.token_id] >= limits.streams_of_one or open_ones.total() >= limits.streams:
        raise Problem(429, "too_many_streams", "Too many streams are open; close some.", {"Retry-After": "5"})


async def _stream(service: Service, who: Who, job_id: str, seq: int) -> AsyncIterator[str]:
    with service.feed.counted(who.token_id):
        async with service.feed.listen(job_id) as bell:
            yield "retry: 2000\n\n"
            while not service.feed.closing:
                bell.clear()
                rows, status = await service.feed.news(job_id, seq)
                for row in rows:
                    seq = row["seq"]
                    # ASCII: clients split lines at more than the line feed.
                    text = json.dumps(shown_event(row).model_dump(mode="json"))
                    yield f"id: {seq}\nevent: {row['type']}\ndata: {text}\n\n"
                if len(rows) == BATCH:
                    continue
                if status in (*TERMINAL, "gone"):
                    yield f"event: end\ndata: {json.dumps({'status': status})}\n\n"
                    return
                try:
                    await asyncio.wait_for(bell.wait(), HEARTBEAT_S)
                except asyncio.TimeoutError:
                    yield ": still here\n\n"


@router.get("/{job_id}/metrics", responses=problems(404, 422))
def metrics(
    job_id: JobId,
    service: Served,
    _: Reader,
    names: Annotated[list[str] | None, Query(max_length=50)] = None,
    max_points: Annotated[int, Query(ge=10, le=10_000)] = 1000,
) -> Curves:
    """Curves: losses by term, speed, scores by epoch."""
    with service.database.reading() as connection:
        find(connection, job_id)
        known = journal.curve_names(connection, job_id)
        chosen = [name for name in known if names is None or name in names]
        data = []
        for name in chosen:
            points = journal.thinned(journal.curve(connection, job_id, name), max_points)
            times = [time / 1000 for _, _, time in points]
            values, steps = [value for _, value, _ in points], [step for step, _, _ in points]
            data.append(Curve(name=name, steps=steps, values=values, times=times))
    return Curves(names=known, data=data)


@router.get(
    "/{job_id}/logs",
    response_class=Response,
    responses={200: {"content": TEXT}, 206: {"content": TEXT, "description": "A part."}, **problems(404, 416, 422)},
)
def logs(
    job_id: JobId,
    service: Served,
    who: Reader,
    request: Request,
    attempt: Annotated[str | None, Query(pattern=ATTEMPT_ID, description="Unset: the last one.")] = None,
    follow: Annotated[bool, Query(description="Go on until the attempt is over.")] = False,
) -> Response:
    """What an attempt wrote; with `Range`, a part of it."""
    with service.database.reading() as connection:
        find(connection, job_id)
        wanted = select(attempts.c.id).where(attempts.c.job_id == job_id).order_by(attempts.c.number.desc())
        if attempt is not None:
            wanted = wanted.where(attempts.c.id == attempt)
        attempt_id = connection.execute(wanted.limit(1)).scalar()
    if attempt_id is None and attempt is not None:
        raise Problem(404, "not_found", "The job has no such attempt.")
    file = service.home.log(job_id, attempt_id) if attempt_id else None
    if follow and file is not None:
        _check_streams(service, who)
        return StreamingResponse(_follow(service, who, job_id, str(attempt_id)), media_type="text/plain")
    size = file.stat().st_size if file is not None and file.is_file() else 0
    if file is None or size == 0:
        return Response("", media_type="text/plain")
    if "range" in request.headers:
        return FileResponse(file, media_type="text/plain")
    # It may grow while it is sent: what was announced is what comes.
    headers = {"Content-Length": str(size), "Accept-Ranges": "bytes"}
    return StreamingResponse(_first(file, size), media_type="text/plain", headers=headers)


def _first(file: Path, size: int) -> Iterator[bytes]:
    with file.open("rb") as stream:
        while size > 0 and (block := stream.read(min(size, 1 << 16))):
            size -= len(block)
            yield block


async def _follow(service: Service, who: Who, job_id: str, attempt_id: str) -> AsyncIterator[bytes]:
    file, offset = service.home.log(job_id, attempt_id), 0

    def over() -> bool:
        with service.database.reading() as connection:
            job = find(connection, job_id)
            return job.status not in OWNED or job.attempt_id != attempt_id

    def more() -> bytes:
        if not file.is_file():
            return b""
        with file.open("rb") as stream:
            stream.seek(offset)
            return stream.read(1 << 16)

    with service.feed.counted(who.token_id):
        while not service.feed.closing:
            last = await asyncio.to_thread(over)
            while block := await asyncio.to_thread(more):
                offset += len(block)
                yield block
            if last:
                return
            await asyncio.sleep(0.5)
