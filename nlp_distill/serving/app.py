"""The server of predictions: router, page, engines; and how it listens and stops."""

from __future__ import annotations

import gc
import signal
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import uvicorn
from fastapi import FastAPI
from fastapi.responses import FileResponse, HTMLResponse

from nlp_distill.serving.api import prediction_router, rooms
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


def make_app(models: list[Served], engines: Mapping[str, Engine], metrics: Metrics, settings: Settings) -> FastAPI:
    """The app. `engines` may fill up after it is made."""
    known = one_token(settings.token) if settings.token else None
    access = Access(known, settings.hosts, OPEN)
    app = new_app("nlp-distill serve", access, MAX_BODY, room_of=rooms(models, engines))
    app.include_router(prediction_router(models, engines, metrics))
    app.include_router(inference_router(models, engines))
    _add_page(app)
    return app


def _add_page(app: FastAPI) -> None:
    @app.get("/", response_class=HTMLResponse, responses=problems(421))
    async def page() -> FileResponse:
        """The page to try the models."""
        return FileResponse(PAGE / "page.html", media_type="text/html; charset=utf-8")

    for name, kind in PARTS.items():
        _add_part(app, name, kind)


def _add_part(app: FastAPI, name: str, kind: str) -> None:
    @app.get(f"/page/{name}", include_in_schema=False)
    async def part() -> FileResponse:
        return FileResponse(PAGE / name, media_type=kind)


class Server(uvicorn.Server):
    """Engines first, then the port: what is asked finds somebody who can answer."""

    def __init__(self, models: list[Served], settings: Settings, announce: Callable[[str], None]) -> None:
        self._models, self._settings, self._announce = models, settings, announce
        self._engines: dict[str, Engine] = {}
        self._metrics = Metrics()
        config = uvicorn.Config(
            make_app(models, self._engines, self._metrics, settings),
            host=settings.host,
            port=settings.port,
            timeout_graceful_shutdown=DRAIN_SECONDS,
            lifespan="off",
            server_header=False,
            access_log=False,
            log_level="warning",
            proxy_headers=False,
        )
        super().__init__(config)

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        """Until SIGTERM or SIGINT; what is being answered then is answered first. Raises `EngineUnfit`."""
        settings = self._settings
        async with running(self._models, settings.threads, settings.most_rows, self._metrics) as engines:
            self._engines.update(engines)
            # uvicorn sends the signal on once it has stopped, and an end that was asked for is no failure.
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, lambda *_: None)
            await super().serve(sockets)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, and say where."""
        # What is there now stays: the collector need not look through it again while requests wait.
        gc.collect()
        gc.freeze()
        await super().startup(sockets)
        for server in self.servers if self.started else []:
            for listening in server.sockets:
                host, port = listening.getsockname()[:2]
                self._announce(f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}")
