"""The list of jobs."""

from __future__ import annotations

from typing import Annotated

from fastapi import Query, Request
from fastapi.responses import Response

from nlp_distill.service.api import jobs as api
from nlp_distill.service.api.models import Status
from nlp_distill.service.api.service import Reader, Served
from nlp_distill.service.api.system import workers_seen
from nlp_distill.service.page.rendering import LIVE, page_router, render

router = page_router()
SHOWN = 25
GROUPS: dict[str, tuple[Status, ...]] = {
    "": (),
    "live": ("queued", "starting", "running", "pausing", "cancelling"),
    "paused": ("paused",),
    "succeeded": ("succeeded",),
    "failed": ("failed",),
    "cancelled": ("cancelled",),
}
assert set(GROUPS["live"]) == set(LIVE)


@router.get("/")
def listed(
    request: Request,
    service: Served,
    who: Reader,
    status: str = "",
    tag: Annotated[str, Query(max_length=60)] = "",
    after: Annotated[str | None, Query(pattern=api.JOB_ID)] = None,
) -> Response:
    """Jobs, newest first; for htmx the table alone."""
    chosen = list(GROUPS.get(status, ()))
    page = api.listed(service, who, chosen or None, tag or None, after, SHOWN)
    part = "jobs_table.html" if request.headers.get("hx-request") else "jobs.html"
    return render(
        request,
        part,
        page=page,
        status=status,
        tag=tag,
        after=after,
        groups=GROUPS,
        workers=workers_seen(service),
        filtered=bool(chosen or tag or after),
    )
