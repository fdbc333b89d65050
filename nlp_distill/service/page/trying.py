"""Try it: the teacher and the student of a job answer the same question."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import Depends, Request, Response

from nlp_distill.service.api import jobs, predictions
from nlp_distill.service.api.models import Job, Prediction, PredictionRequest
from nlp_distill.service.api.service import JobId, Predictor, Reader, Served, Service
from nlp_distill.service.page.rendering import form_of, go, one, page_router, render
from nlp_distill.serving.bodies import MOST_LABELS, example_of, kind_of
from nlp_distill.web.problems import Problem

router = page_router()
Sent = Annotated[dict[str, list[str]], Depends(form_of)]


@router.get("/try")
def pick(request: Request, service: Served, who: Reader) -> Response:
    """The last job that succeeded, or a word that there is none."""
    there = jobs.listed(service, who, ["succeeded"], None, None, 1).data
    return go(f"/jobs/{there[0].id}/try") if there else render(request, "try_none.html")


@router.get("/jobs/{job_id}/try")
def asked(request: Request, job_id: JobId, service: Served, who: Reader) -> Response:
    """The form, with an example of the task's."""
    job = jobs.show(job_id, Response(), service, who)
    others = jobs.listed(service, who, ["succeeded"], None, None, 25).data
    return _page(request, job, others, *_example(service, job))


def _example(service: Service, job: Job) -> tuple[str, str]:
    example = example_of(job.recipe["tasks"][0], service.home.run(job.id) / "model")
    return (example["context"], example["question"]) if isinstance(example, dict) else (example, "")


def _page(request: Request, job: Job, others: list[Job], text: str, beside: str, **said: Any) -> Response:
    told = {"answers": [], "wrong": "", **said}
    kind = kind_of(job.recipe["tasks"][0])
    return render(request, "try.html", job=job, others=others, kind=kind, text=text, beside=beside, **told)


@router.post("/jobs/{job_id}/try")
async def answered(request: Request, job_id: JobId, service: Served, who: Predictor, sent: Sent) -> Response:
    """The answers; for htmx they alone."""
    text, beside = one(sent, "text"), one(sent, "beside")
    job = jobs.show(job_id, Response(), service, who)
    answers: list[Prediction] = []
    wrong = ""
    try:
        kind = kind_of(job.recipe["tasks"][0])
        question = PredictionRequest(inputs=kind.joined(text, beside), parameters=dict(kind.tried))
        answers = (await predictions.predict(job_id, question, service, who)).data
    except Problem as problem:
        wrong = str(problem.detail)
    shown = [(answer, *_told(answer.outputs)) for answer in answers]
    if request.headers.get("hx-request"):
        return render(request, "answers.html", answers=shown, wrong=wrong)
    others = jobs.listed(service, who, ["succeeded"], None, None, 25).data if who.may("read") else []
    return _page(request, job, others, text, beside, answers=shown, wrong=wrong)


def _told(outputs: Any) -> tuple[list[dict[str, Any]], str]:
    """Labels with scores, or words."""
    rows = outputs if isinstance(outputs, list) else [outputs]
    rows = rows[0] if rows and isinstance(rows[0], list) else rows
    if rows and "label" in rows[0]:
        return rows[:MOST_LABELS], ""
    first = rows[0] if rows else {}
    words = first.get("answer", first.get("generated_text", first.get("sequence", "")))
    return [], str(words)
