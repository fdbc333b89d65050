"""A FastAPI app with everything that ours share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager

from fastapi import FastAPI
from starlette.types import Scope

from nlp_distill import __version__
from nlp_distill.web.guard import Access, Guard, Room
from nlp_distill.web.problems import answer_with_problems


def new_app(
    title: str,
    access: Access,
    max_body: int,
    larger: Mapping[str, int] | None = None,
    body_seconds: float = 30.0,
    lifespan: Callable[[FastAPI], AbstractAsyncContextManager[None]] | None = None,
    room_of: Callable[[Scope], Room | None] = lambda scope: None,
) -> FastAPI:
    """An app whose errors are problem documents, behind the guard, with no page that loads from elsewhere.

    `max_body`: bytes that a body may have; `larger`: prefix of a path → bytes, where it may have others;
    `body_seconds`: how long it may take to arrive; `room_of`: see `Guard`.
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
        Guard, access=access, max_body=max_body, larger=larger or {}, body_seconds=body_seconds, room_of=room_of
    )
    return app
