"""A FastAPI app with everything that ours share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager

from fastapi import FastAPI
from starlette.types import Scope

from nlp_distill import __version__
from nlp_distill.web.guard import Access, Guard
from nlp_distill.web.problems import answer_with_problems


def new_app(
    title: str,
    access: Access,
    max_body: int,
    larger: Mapping[str, int] | None = None,
    body_seconds: float = 30.0,
    lifespan: Callable[[FastAPI], AbstractAsyncContextManager[None]] | None = None,
    admit: Callable[[Scope], None] | None = None,
) -> FastAPI:
    """An app whose errors are problem documents, behind the guard, with no page that loads from elsewhere.

    `max_body`: bytes that a body may have; `larger`: prefix of a path → bytes, where it may have others;
    `body_seconds`: how long it may take to arrive; `admit`: raises `Problem` where there is no room.
    """
    app = FastAPI(
        title=title,
        version=__version__,
        docs_url=None,
        redoc_url=None,
        lifespan=lifespan,
    )
    answer_with_problems(app)
    app.add_middleware(
        Guard, access=access, max_body=max_body, larger=larger or {}, body_seconds=body_seconds, admit=admit
    )
    return app
