"""One job: where it is, its curves, its log, what it delivered, and what may be asked of it."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from typing import Any, Literal

import yaml
from fastapi import Request, Response
from fastapi.responses import FileResponse

from nlp_distill.reports.plots import SMALL, Line, curves
from nlp_distill.service.api import artifacts, events, jobs
from nlp_distill.service.api.models import Artifact, Curve, Job
from nlp_distill.service.api.service import JobId, Reader, Served, Service, Submitter
from nlp_distill.service.page.rendering import FRAMING, LIVE, fix_of, go, page_router, render
from nlp_distill.service.store import journal
from nlp_distill.service.store.queue import TERMINAL
from nlp_distill.service.store.tokens import Who
from nlp_distill.stage_keys import UPSTREAM
from nlp_distill.web.guard import HEADERS
from nlp_distill.web.problems import Problem

router = page_router()
Action = Literal["cancel", "pause", "resume", "retry", "clone"]
ALLOWED: dict[Action, tuple[str, ...]] = {
    "pause": ("queued", "starting", "running"),
    "resume": ("paused",),
    "retry": ("failed", "cancelled"),
    "cancel": ("queued", "starting", "running", "pausing", "paused"),
}
SHOWN = ("score", "loss", "examples")
"""Curves, in the order in which people look at them."""
TAIL = 64 << 10
MOST_EVENTS = 100
MOST_POINTS = 500
REPORT = "report.html"
REPORT_POLICY = "sandbox; default-src 'none'; style-src 'unsafe-inline'; img-src data:; frame-ancestors 'self'"
"""The report is one file with its style inside; it may do nothing else, and nothing may be done with it."""


@dataclass(frozen=True)
class Stage:
    """A stop of the road. `state`: as an event said it last, or `waiting`."""

    name: str
    state: str
    seconds: float | None = None


def rail(happened: list[dict[str, Any]], job: Job) -> list[Stage]:
    """The stages of a job in their order."""
    said: dict[str, dict[str, Any]] = {}
    for event in happened:
        name = str(event["data"].get("stage"))
        # What an earlier attempt has done is skipped by the next one.
        if event["type"] == "stage" and not (name in said and event["data"].get("state") == "skipped"):
            said[name] = event["data"]
    wanted = {"control": bool(job.recipe.get("control")), "publish": job.recipe.get("publish") is not None}
    found = []
    for name in UPSTREAM:
        if not wanted.get(name, True):
            continue
        state = str(said.get(name, {}).get("state", "waiting"))
        if state == "started" and job.status not in LIVE:
            state = "failed" if job.status == "failed" else "stopped"
        found.append(Stage(name, state, said.get(name, {}).get("seconds")))
    return found


def _everything(service: Service, job_id: str) -> list[dict[str, Any]]:
    """Events that are not about progress, of which there are too many."""
    with service.database.reading() as connection:
        jobs.find(connection, job_id)
        return journal.read(connection, job_id, 0, 100_000, without="progress")


def _state(service: Service, who: Who, job_id: str) -> dict[str, Any]:
    """What changes when the status does."""
    job = jobs.show(job_id, Response(), service, who)
    happened = _everything(service, job_id)
    delivered = artifacts.listed(job_id, service, who).data
    tried = jobs.attempts_of(job_id, service, who).data
    return {
        "job": job,
        "rail": rail(happened, job),
        "attempts": [(attempt, fix_of(attempt.reason)) for attempt in reversed(tried)],
        "artifacts": delivered,
        "total": sum(artifact.bytes for artifact in delivered),
        "report": _report_of(delivered),
        "actions": [action for action, statuses in ALLOWED.items() if job.status in statuses],
        "over": job.status in TERMINAL,
        "events": [(events.shown_event(event), _sentence(event)) for event in reversed(happened[-MOST_EVENTS:])],
        "more_events": len(happened) > MOST_EVENTS,
    }


def _sentence(event: dict[str, Any]) -> str:
    """The message; of events that are a name and numbers, these too."""
    message, data = str(event["message"]), event["data"]
    if message != data.get("kind"):
        return message
    facts = [
        f"{name.replace('_', ' ')} {value}" for name, value in data.items() if isinstance(value, str | int | float)
    ]
    return f"{message}: {', '.join(fact for fact in facts if fact != f'kind {message}')}".removesuffix(": ")


def _report_of(delivered: list[Artifact]) -> Artifact | None:
    return next((artifact for artifact in delivered if artifact.path == REPORT), None)


@router.get("/jobs/{job_id}")
def shown(request: Request, job_id: JobId, service: Served, who: Reader) -> Response:
    """The page of a job."""
    state = _state(service, who, job_id)
    text, end, attempt = _log(service, who, job_id)
    drawn = _drawn(events.metrics(job_id, service, who, None, MOST_POINTS).data)
    said: dict[str, Any] = {"log": text, "log_end": end, "log_attempt": attempt, "curves": drawn}
    said["recipe"] = yaml.safe_dump(state["job"].recipe, sort_keys=False, allow_unicode=True, width=100)
    return render(request, "job.html", key=secrets.token_hex(16), **state, **said)


@router.get("/jobs/{job_id}/state")
def state(request: Request, job_id: JobId, service: Served, who: Reader) -> Response:
    """The parts of the page that follow the status."""
    return render(request, "job_news.html", key=secrets.token_hex(16), **_state(service, who, job_id))


def _log(service: Service, who: Who, job_id: str) -> tuple[str, int, str]:
    """The end of the last attempt's log, how long it is in bytes, and whose it is."""
    tried = jobs.attempts_of(job_id, service, who).data
    if not tried:
        return "", 0, ""
    file = service.home.log(job_id, tried[-1].id)
    if not file.is_file():
        return "", 0, tried[-1].id
    with file.open("rb") as stream:
        end = stream.seek(0, 2)
        stream.seek(max(0, end - TAIL))
        text = stream.read(TAIL).decode("utf-8", "replace")
    return ("… " + text.partition("\n")[2] if end > TAIL else text), end, tried[-1].id


@dataclass(frozen=True)
class Drawn:
    """A figure: a curve of one name in the store, drawn for readers without a script."""

    name: str
    title: str
    svg: Any


def _drawn(found: list[Curve]) -> list[tuple[str, list[Drawn]]]:
    """The score of each epoch, the losses and the speed of each stage that trains; the latest stage first."""
    stages: dict[str, list[Drawn]] = {}
    for curve in sorted(found, key=_place, reverse=True):
        title = titled(curve.name)
        points = [(float(step), value) for step, value in zip(curve.steps, curve.values, strict=True)]
        if not title or not points:
            continue
        stage, dots = stage_of(curve.name), points if ".epoch." in curve.name else ()
        line = Line(title, "teacher" if stage.startswith("teacher") else "student", points, dots)
        svg = curves([line], f"{stage}, {title}", "epoch" if dots else "step", "", SMALL)
        stages.setdefault(stage, []).append(Drawn(curve.name, title, svg))
    return [
        (stage, sorted(figures, key=lambda one: SHOWN.index(one.title.split(" ")[0])))
        for stage, figures in stages.items()
    ]


def _place(curve: Curve) -> int:
    """Of a curve's stage among all; last is what an export trains."""
    order, stage = list(UPSTREAM), stage_of(curve.name).split(" ")[0]
    return order.index(stage) if stage in order else len(order)


def stage_of(name: str) -> str:
    """`distill` of `distill.loss.hidden`."""
    return name.partition(".")[0]


def titled(name: str) -> str:
    """What a curve is called; nothing for those that say little."""
    kind, _, what = name.partition(".")[2].partition(".")
    if kind == "loss":
        return f"loss of {what}"
    return {"selection_score": "score", "examples_per_s": "examples a second"}.get(what or kind, "")


@router.get("/jobs/{job_id}/report")
def report(request: Request, job_id: JobId, service: Served, who: Reader) -> Response:
    """The report in a frame that may do nothing."""
    job = jobs.show(job_id, Response(), service, who)
    artifact = _report_of(artifacts.listed(job_id, service, who).data)
    if artifact is None:
        raise Problem(404, "not_found", "The job has no report (yet).")
    answer = render(request, "report.html", job=job, artifact=artifact)
    answer.headers["content-security-policy"] = HEADERS["content-security-policy"] + FRAMING
    return answer


@router.get("/jobs/{job_id}/report/content")
def report_content(job_id: JobId, service: Served, _: Reader) -> Response:
    """The report itself."""
    row = next((row for row in artifacts.of_job(service, job_id) if row.path == REPORT), None)
    if row is None:
        raise Problem(404, "not_found", "The job has no report (yet).")
    headers = {"content-security-policy": REPORT_POLICY}
    return FileResponse(artifacts.place_of(service, row), media_type="text/html; charset=utf-8", headers=headers)


@router.post("/jobs/{job_id}/remove")
def remove(job_id: JobId, service: Served, who: Submitter) -> Response:
    """Forget a job that is over."""
    jobs.remove(job_id, service, who)
    return go("/")


@router.post("/jobs/{job_id}/{action}")
def act(job_id: JobId, action: Action, service: Served, who: Submitter) -> Response:
    """Ask something of a job."""
    if action == "clone":
        return go(f"/jobs/{jobs.clone(job_id, Response(), service, who).id}")
    asked = {"cancel": jobs.cancel, "pause": jobs.pause, "resume": jobs.resume, "retry": jobs.retry}
    asked[action](job_id, service, who)
    return go(f"/jobs/{job_id}")
