"""The app: routes, the guard, the life of a server."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

from fastapi import FastAPI, Request, Response
from sqlalchemy.exc import OperationalError
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from nlp_distill.service.api import artifacts, events, files, jobs, predictions, recipes, system, tokens
from nlp_distill.service.api.feed import Feed
from nlp_distill.service.api.service import Limits, Service
from nlp_distill.service.engines import Engines
from nlp_distill.service.home import Home
from nlp_distill.service.page.app import LARGER, OPEN, OPEN_POSTS, SIGN_IN, add_pages
from nlp_distill.service.page.sessions import Sessions
from nlp_distill.service.store import tokens as token_store
from nlp_distill.service.store.database import Database
from nlp_distill.service.store.queue import Queue
from nlp_distill.web.app import new_app
from nlp_distill.web.guard import Access
from nlp_distill.web.problems import Problem, problems, request_id

BODY_SECONDS = 600.0
"""A gigabyte may come through a slow line."""
LIMITS = Limits()
METHODS = ("GET", "HEAD", "POST", "PATCH", "DELETE", "PUT", "OPTIONS")


class Counting:
    """ASGI middleware: requests by method and status."""

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self.app, self.service = app, service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Count what is answered."""

        async def counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                method = scope["method"] if scope["method"] in METHODS else "other"
                self.service.requests[method, message["status"]] += 1
            await send(message)

        await self.app(scope, receive, counted if scope["type"] == "http" else send)


def service_app(home: Home, limits: Limits = LIMITS, hosts: tuple[str, ...] = ()) -> FastAPI:
    """The HTTP API of a home. Its admin token, made where there was none, may everything."""
    home.make()
    database = Database(home.database).migrate()
    with database.writing() as connection:
        token_store.keep_admin(connection, home.admin_token())
    service = Service(home, database, Queue(database), Feed(database), Engines(home), limits)
    sessions = Sessions(home, database)
    access = Access(sessions.known, hosts, (*Access.open_paths, *OPEN), OPEN_POSTS, SIGN_IN)

    @contextlib.asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        service.draining = False
        looking = [asyncio.create_task(service.feed.run()), asyncio.create_task(service.engines.run())]
        yield
        service.draining = True
        for task in looking:
            task.cancel()
        await service.engines.close()
        database.close()

    larger = {"/v1/files": limits.file, LARGER: limits.file}
    app = new_app("nlp-distill jobs", access, limits.body, larger, BODY_SECONDS, lifespan)
    app.add_middleware(Counting, service=service)
    app.state.service = service
    shared = problems(400, 401, 403, 408, 413, 421, 500, 503)
    for router in (jobs.router, events.router, artifacts.router, files.router, recipes.router, tokens.router):
        app.include_router(router, responses=shared)
    app.include_router(predictions.router, responses=shared)
    app.include_router(system.router, responses=shared)
    add_pages(app, sessions)
    _describe_tokens(app)

    @app.exception_handler(OperationalError)
    async def of_database(request: Request, error: OperationalError) -> Response:
        detail = "The database cannot be used now: it is locked, or its disk is full."
        return Problem(503, "database", detail, {"Retry-After": "10"}).response(request_id(request))

    return app


def _describe_tokens(app: FastAPI) -> None:
    """Say in the description what the guard asks for, which routes know nothing of."""
    found = app.openapi()
    bearer = {"type": "http", "scheme": "bearer", "description": "A token; scopes: read, submit, predict, admin."}
    found["components"]["securitySchemes"] = {"bearer": bearer}
    found["security"] = [{"bearer": []}]
    for path, operations in found["paths"].items():
        if path.startswith("/health/"):
            for operation in operations.values():
                operation["security"] = []
