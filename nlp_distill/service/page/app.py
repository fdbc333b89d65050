"""All pages of the service, for its app."""

from __future__ import annotations

from fastapi import FastAPI, Response

from nlp_distill.service.page import comparing, job, jobs, signing, submitting, system, trying
from nlp_distill.service.page.rendering import asset_response
from nlp_distill.service.page.sessions import Sessions

OPEN = (signing.SIGN_IN, "/assets/*")
OPEN_POSTS = (signing.SIGN_IN,)
SIGN_IN = signing.SIGN_IN
LARGER = "/new/upload"
"""The form that may be as large as an upload."""


def add_pages(app: FastAPI, sessions: Sessions) -> None:
    """Add every page to the app."""
    app.state.sessions = sessions
    for part in (signing, jobs, submitting, trying, job, comparing, system):
        app.include_router(part.router)

    @app.get("/assets/{name}", include_in_schema=False)
    def loaded(name: str) -> Response:
        return asset_response(name)
