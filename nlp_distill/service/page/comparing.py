"""Several jobs side by side: variants, what a score costs, and how the recipes differ."""

from __future__ import annotations

from string import ascii_uppercase
from typing import Annotated, Any

from fastapi import Query, Request
from fastapi.responses import Response

from nlp_distill.reports.plots import Mark, trade_off
from nlp_distill.service.api import artifacts, jobs
from nlp_distill.service.api.models import Compared, CompareRequest
from nlp_distill.service.api.service import Reader, Served
from nlp_distill.service.page.rendering import page_router, render

router = page_router()
Chosen = Annotated[list[Annotated[str, Query(pattern=jobs.JOB_ID)]] | None, Query(max_length=20)]
COSTS = (("latency_ms", "latency, ms", 1.0), ("bytes", "size, MB", 1e6))


@router.get("/compare")
def compared(request: Request, service: Served, who: Reader, job: Chosen = None) -> Response:
    """Pick jobs, or see those that were picked."""
    there = jobs.listed(service, who, ["succeeded"], None, None, 100).data
    chosen = list(dict.fromkeys(job or []))
    found = artifacts.compare(CompareRequest(jobs=chosen), service, who) if chosen else None
    letters = dict(zip(chosen, ascii_uppercase, strict=False))
    variants = found.variants if found else []
    return render(
        request,
        "compare.html",
        there=there,
        chosen=chosen,
        letters=letters,
        found=found,
        names={variant.job_id: variant.job_name for variant in variants},
        plots=[
            plot for metric in dict.fromkeys(v.metric for v in variants) for plot in _plots(variants, metric, letters)
        ],
    )


def _plots(variants: list[Compared], metric: str, letters: dict[str, str]) -> list[tuple[str, Any]]:
    """Score against each cost, of jobs that are scored alike."""
    plots = []
    for cost, title, unit in COSTS:
        marks = []
        for variant in variants:
            x, y = getattr(variant, cost), variant.score
            if variant.metric != metric or x is None or y is None:
                continue
            name = variant.variant.removeprefix("student-")
            label = f"{letters[variant.job_id]} {name}" if len(letters) > 1 else name
            marks.append(Mark(label, kind(variant.variant), x / unit, y, y, y, variant.recommended))
        if marks:
            plots.append((f"{metric} against {title}", trade_off(marks, f"{metric} against {title}", title, metric)))
    return plots


def kind(variant: str) -> str:
    """What decides a mark's colour and shape."""
    return variant if variant in ("teacher", "control", "student") else "export"
