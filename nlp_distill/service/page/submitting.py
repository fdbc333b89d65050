"""A new job: from a template, from rows of one's own, from YAML, or from an earlier job."""

from __future__ import annotations

import asyncio
import secrets
from typing import Annotated, Any

from fastapi import Depends, Query, Request
from fastapi.responses import JSONResponse, Response

from nlp_distill.service.api import files, jobs, recipes
from nlp_distill.service.api.models import JobRequest, RecipeRequest, Template
from nlp_distill.service.api.service import Reader, Served, Service, Submitter
from nlp_distill.service.page.drafts import Draft, checked, from_file, from_form, from_job, from_template, from_yaml
from nlp_distill.service.page.rendering import form_of, go, one, page_router, render
from nlp_distill.service.references import references
from nlp_distill.service.store.tokens import Who
from nlp_distill.web.problems import Problem

router = page_router()
Sent = Annotated[dict[str, list[str]], Depends(form_of)]
FILE_ID = Query(pattern=r"^file_[0-9a-f]{32}$")


@router.get("/new")
async def begun(
    request: Request,
    service: Served,
    who: Submitter,
    template: str = "",
    file: Annotated[str | None, FILE_ID] = None,
    task: str = "",
    job: Annotated[str | None, Query(pattern=jobs.JOB_ID)] = None,
) -> Response:
    """Where to begin, or the form of what was begun."""
    if (file is not None or job is not None) and not who.may("read"):
        raise Problem(403, "scope_missing", "This needs a token with the scope 'read'.")
    if template:
        draft = from_template(template)
    elif file is not None:
        draft = await from_file(service, who, file, task)
    elif job is not None:
        draft = await asyncio.to_thread(from_job, service, job)
    else:
        return _choices(request, service, who)
    return _form(request, draft)


def _choices(request: Request, service: Service, who: Who, status: int = 200, **said: Any) -> Response:
    templates = sorted(recipes.templates(who).data, key=lambda one: (one.name != "quickstart", one.name))
    ready = [template for template in templates if "sample:" in template.yaml and _runs_here(service, template)]
    others = [template for template in templates if template not in ready]
    uploads = files.listed(service, who).data[:5] if who.may("read") else []
    return render(request, "new.html", status, ready=ready, others=others, uploads=uploads, **{"yaml": "", **said})


def _runs_here(service: Service, template: Template) -> bool:
    try:
        recipe = recipes.read_recipe(service, template.yaml)
    except Problem:
        return False
    return not any(reference.value.startswith("runs/") for reference in references(recipe.resolved()))


def _form(request: Request, draft: Draft, status: int = 200, **said: Any) -> Response:
    shown = {"estimate": None, "unknown": "", **said}
    shown["code_of"] = draft.elsewhere(_origin(request))
    return render(request, "form.html", status, draft=draft, key=secrets.token_hex(16), **shown)


def _origin(request: Request) -> str:
    return f"{request.url.scheme}://{request.headers['host']}"


@router.post("/new/upload")
async def uploaded(request: Request, service: Served, who: Submitter) -> Response:
    """Take a file, and show what is in it."""
    try:
        file = await files.upload(request, service, who, "", None)
    except Problem as problem:
        if problem.status_code not in (400, 415, 422):
            raise
        return _choices(request, service, who, 422, refused=problem.detail)
    return go(f"/new?file={file.id}")


@router.post("/new/yaml")
async def written(request: Request, service: Served, who: Submitter, sent: Sent) -> Response:
    """A recipe that somebody has already."""
    text = one(sent, "yaml")
    try:
        await asyncio.to_thread(recipes.read_recipe, service, text)
    except Problem as problem:
        places = problem.errors
        return _choices(request, service, who, 422, yaml=text, places=places, detail=problem.detail)
    return _form(request, from_yaml(text, {}))


@router.post("/new")
async def sent_in(request: Request, service: Served, who: Submitter, sent: Sent) -> Response:
    """Submit it, if nothing is wrong; or show it again."""
    wish = one(sent, "do") or "submit"
    draft = await from_form(service, who, sent)
    well = await checked(service, who, draft) if wish != "shape" else False
    if wish == "estimate" and well:
        found, unknown = await _estimate(service, who, draft)
        return _form(request, draft, estimate=found, unknown=unknown)
    if wish != "submit" or not well:
        return _form(request, draft, 200 if wish == "shape" else 422)
    try:
        job_id = await asyncio.to_thread(_submit, service, who, draft, one(sent, "key") or None)
    except Problem as problem:
        draft.wrong.append(str(problem.detail))
        return _form(request, draft, problem.status_code)
    return go(f"/jobs/{job_id}")


def _submit(service: Service, who: Who, draft: Draft, key: str | None) -> str:
    request = JobRequest.model_validate(draft.request)
    try:
        return jobs.create(request, Response(), service, who, key).id
    except Problem as problem:
        if problem.code != "key_reused":
            raise
        # Back in the browser, changed, and sent again: another job.
        return jobs.create(request, Response(), service, who, None).id


@router.post("/new/check")
async def looked_at(request: Request, service: Served, who: Reader, sent: Sent) -> JSONResponse:
    """What is wrong so far, and how else to ask; for the page's script."""
    draft = await from_form(service, who, sent)
    well = await checked(service, who, draft)
    said = {"well": well, "errors": draft.errors(), "wrong": draft.wrong}
    return JSONResponse({**said, "code": draft.elsewhere(_origin(request))})


@router.post("/new/estimate")
async def estimated(request: Request, service: Served, who: Reader, sent: Sent) -> Response:
    """What it will take; for the page's script."""
    draft = await from_form(service, who, sent)
    if not await checked(service, who, draft):
        return render(request, "estimate.html", estimate=None, unknown="")
    found, unknown = await _estimate(service, who, draft)
    return render(request, "estimate.html", estimate=found, unknown=unknown)


async def _estimate(service: Service, who: Who, draft: Draft) -> tuple[Any, str]:
    try:
        return await recipes.estimate(RecipeRequest(recipe=draft.given), service, who), ""
    except Problem as problem:
        return None, str(problem.detail)
