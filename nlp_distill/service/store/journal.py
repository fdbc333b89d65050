"""What happened to a job, in order and without gaps; and the numbers that its curves are drawn from."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from sqlalchemy import Connection, func, insert, select, update
from sqlalchemy.dialects import sqlite

from nlp_distill.service.home import now_ms
from nlp_distill.service.store.tables import events, jobs, metrics

Type = Literal["status", "stage", "progress", "metric", "log", "artifact", "warning", "error"]
Level = Literal["info", "warning", "error"]


@dataclass(frozen=True)
class Event:
    """One thing that happened; `created_at` unset: now."""

    type: Type
    message: str
    data: Mapping[str, Any] = field(default_factory=dict)
    level: Level = "info"
    created_at: int | None = None


@dataclass(frozen=True)
class Point:
    """One value of a curve."""

    name: str
    step: int
    value: float
    created_at: int


def append(connection: Connection, job_id: str, happened: Sequence[Event]) -> int:
    """Write events behind those that are there; the number of the last one."""
    counting = update(jobs).where(jobs.c.id == job_id).values(seq=jobs.c.seq + len(happened)).returning(jobs.c.seq)
    last = int(connection.execute(counting).scalar_one())
    first = last - len(happened) + 1
    rows = [
        {
            "job_id": job_id,
            "seq": seq,
            "created_at": event.created_at or now_ms(),
            "type": event.type,
            "level": event.level,
            "message": event.message,
            "data": dict(event.data),
        }
        for seq, event in enumerate(happened, first)
    ]
    if rows:
        connection.execute(insert(events), rows)
    return last


def read(connection: Connection, job_id: str, after: int, limit: int, without: str = "") -> list[dict[str, Any]]:
    """Events behind a number, in order; `without`: those of a type are left out, and do not count."""
    wanted = select(events).where(events.c.job_id == job_id, events.c.seq > after, events.c.type != without)
    wanted = wanted.order_by(events.c.seq).limit(limit)
    return [dict(row) for row in connection.execute(wanted).mappings()]


def heads(connection: Connection, job_ids: Iterable[str]) -> dict[str, tuple[int, str]]:
    """Of jobs that are there: the number of the last event, and the status."""
    wanted = select(jobs.c.id, jobs.c.seq, jobs.c.status).where(jobs.c.id.in_(list(job_ids)))
    return {row.id: (row.seq, row.status) for row in connection.execute(wanted)}


def plot(connection: Connection, job_id: str, points: Sequence[Point]) -> None:
    """Keep points; a step that a resumed run repeats says the same again. What is no number is left out."""
    rows = [point.__dict__ | {"job_id": job_id} for point in points if math.isfinite(point.value)]
    if rows:
        statement = sqlite.insert(metrics)
        again = {"value": statement.excluded.value, "created_at": statement.excluded.created_at}
        keys = [metrics.c.job_id, metrics.c.name, metrics.c.step]
        connection.execute(statement.on_conflict_do_update(index_elements=keys, set_=again), rows)


def curve_names(connection: Connection, job_id: str) -> list[str]:
    """Names of a job's curves."""
    wanted = select(metrics.c.name).where(metrics.c.job_id == job_id).distinct().order_by(metrics.c.name)
    return [str(name) for name in connection.execute(wanted).scalars()]


def curve(connection: Connection, job_id: str, name: str) -> list[tuple[int, float, int]]:
    """Step, value and time of each point of a curve."""
    wanted = select(metrics.c.step, metrics.c.value, metrics.c.created_at)
    wanted = wanted.where(metrics.c.job_id == job_id, metrics.c.name == name).order_by(metrics.c.step)
    return [(row.step, row.value, row.created_at) for row in connection.execute(wanted)]


def thinned(points: list[tuple[int, float, int]], most: int) -> list[tuple[int, float, int]]:
    """At most about `most` points that look the same: the first, the last, and the least and greatest of each part."""
    if len(points) <= most:
        return points
    parts = max(1, (most - 2) // 2)
    inner, kept = points[1:-1], [points[0]]
    for part in range(parts):
        cut = inner[part * len(inner) // parts : (part + 1) * len(inner) // parts]
        if cut:
            low, high = min(cut, key=lambda point: point[1]), max(cut, key=lambda point: point[1])
            kept += sorted({low, high})
    return [*kept, points[-1]]


def count(connection: Connection) -> int:
    """Events in all."""
    return int(connection.execute(select(func.coalesce(func.sum(jobs.c.seq), 0))).scalar_one())
