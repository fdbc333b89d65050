"""What the routes share: the service that they speak for, and who may use them."""

from __future__ import annotations

import asyncio
import shutil
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Annotated, Any

from fastapi import Depends, Path, Request

from nlp_distill.service.api.feed import Feed
from nlp_distill.service.engines import Engines
from nlp_distill.service.home import Home
from nlp_distill.service.store.database import Database
from nlp_distill.service.store.queue import Queue
from nlp_distill.service.store.tokens import Scope, Who
from nlp_distill.web.problems import Problem


@dataclass(frozen=True)
class Limits:
    """What a server gives at most. Bytes, counts, seconds."""

    body: int = 2 << 20
    file: int = 2 << 30
    waiting: int = 1000
    streams_of_one: int = 20
    streams: int = 500
    free_disk: int = 256 << 20
    side_process_s: float = 60.0


@dataclass
class Service:
    """One server's view of a home."""

    home: Home
    database: Database
    queue: Queue
    feed: Feed
    engines: Engines
    limits: Limits = Limits()
    draining: bool = False
    side: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(2))
    requests: Counter[tuple[str, int]] = field(default_factory=Counter)

    def free_disk(self) -> int:
        """Bytes that can be written."""
        return shutil.disk_usage(self.home.path).free


# Dependencies are coroutines: functions would each be sent to a thread.
async def _service(request: Request) -> Service:
    service: Service = request.app.state.service
    return service


Served = Annotated[Service, Depends(_service)]
_IDS = {kind: rf"^{kind}_[0-9a-f]{{32}}$" for kind in ("job", "file", "artifact", "token", "attempt")}
JobId = Annotated[str, Path(pattern=_IDS["job"], description="A job.")]
FileId = Annotated[str, Path(pattern=_IDS["file"], description="An upload.")]
ArtifactId = Annotated[str, Path(pattern=_IDS["artifact"], description="A file of a finished job.")]
TokenId = Annotated[str, Path(pattern=_IDS["token"], description="A token's id, not the token.")]
ATTEMPT_ID = _IDS["attempt"]


def needs(scope: Scope) -> Callable[[Request], Awaitable[Who]]:
    """A dependency: whoever asks, if the token has this scope."""

    async def who(request: Request) -> Who:
        found: Who | None = request.scope["state"].get("who")
        if found is None or not found.may(scope):
            raise Problem(403, "scope_missing", f"This needs a token with the scope '{scope}'.")
        return found

    return who


Reader = Annotated[Who, Depends(needs("read"))]
Submitter = Annotated[Who, Depends(needs("submit"))]
Predictor = Annotated[Who, Depends(needs("predict"))]
Admin = Annotated[Who, Depends(needs("admin"))]


def missing(what: str) -> Problem:
    """There is no such thing (any more)."""
    return Problem(404, "not_found", f"There is no {what} with this id.")


def row_or_missing(row: Any, what: str) -> Any:
    """The row, or the problem that there is none."""
    if row is None:
        raise missing(what)
    return row
