"""The server of predictions: router, page, engines; and how it listens and stops."""

from __future__ import annotations

import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import uvicorn
from fastapi import FastAPI
from fastapi.responses import FileResponse

from nlp_distill.serving.api import prediction_router
from nlp_distill.serving.catalog import Served
from nlp_distill.serving.engines import Engine, running
from nlp_distill.serving.metrics import Metrics
from nlp_distill.serving.oip import inference_router
from nlp_distill.web.app import new_app
from nlp_distill.web.guard import Access, one_token
from nlp_distill.web.problems import problems

MAX_BODY = 2_000_000
DRAIN_SECONDS = 30
PAGE = Path(__file__).parent / "page"
PARTS = {"page.css": "text/css; charset=utf-8", "page.js": "text/javascript; charset=utf-8"}
OPEN = ("/health/*", "/v2/health/*", "/", "/page/*", "/openapi.json")


@dataclass(frozen=True)
class Settings:
    """How to serve. `threads`: runs side by side in an engine; `most_rows`: inputs that may wait for an engine."""

    host: str = "127.0.0.1"
    port: int = 8000
    token: str | None = field(default=None, repr=False)
    hosts: tuple[str, ...] = ()
    threads: int = 2
    most_rows: int = 128


def make_app(models: list[Served], settings: Settings) -> FastAPI:
    """The app; its engines start and stop with it."""
    metrics = Metrics()
    engines: dict[str, Engine] = {}

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with running(models, settings.threads, settings.most_rows, metrics) as started:
            engines.update(started)
            yield
            engines.clear()

    known = one_token(settings.token) if settings.token else None
    access = Access(known, settings.hosts, OPEN)
    app = new_app("nlp-distill serve", access, MAX_BODY, lifespan=lifespan)
    app.include_router(prediction_router(models, engines, metrics))
    app.include_router(inference_router(models, engines))
    _add_page(app)
    return app


def _add_page(app: FastAPI) -> None:
    @app.get("/", include_in_schema=False, responses=problems(421))
    async def page() -> FileResponse:
        return FileResponse(PAGE / "page.html", media_type="text/html; charset=utf-8")

    for name, kind in PARTS.items():
        _add_part(app, name, kind)


def _add_part(app: FastAPI, name: str, kind: str) -> None:
    @app.get(f"/page/{name}", include_in_schema=False)
    async def part() -> FileResponse:
        return FileResponse(PAGE / name, media_type=kind)


def serve(models: list[Served], settings: Settings) -> None:
    """Listen until SIGTERM or SIGINT; requests that are there are answered first."""
    config = uvicorn.Config(
        make_app(models, settings),
        host=settings.host,
        port=settings.port,
        timeout_graceful_shutdown=DRAIN_SECONDS,
        server_header=False,
        access_log=False,
        log_level="warning",
        proxy_headers=False,
    )
    # uvicorn sends a signal on once it has stopped, and the end that was asked for is no failure.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    uvicorn.Server(config).run()
