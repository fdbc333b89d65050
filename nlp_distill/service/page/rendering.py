"""Templates → answers. Everything that a template shows is escaped; problems are pages, too."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Coroutine
from datetime import datetime, timezone
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import parse_qsl

from fastapi import APIRouter, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, HTMLResponse, RedirectResponse, Response
from fastapi.routing import APIRoute
from jinja2 import Environment, PackageLoader, StrictUndefined
from starlette.exceptions import HTTPException

from nlp_distill import __version__
from nlp_distill.errors import UserError
from nlp_distill.service.api.service import missing
from nlp_distill.service.reasons import FIXES, Reason
from nlp_distill.service.store.queue import OWNED, TERMINAL

STATIC = Path(__file__).parent / "static"
KINDS = {".css": "text/css; charset=utf-8", ".js": "text/javascript; charset=utf-8"}
KEPT = {"cache-control": "public, max-age=31536000, immutable"}
LIVE = ("queued", *OWNED)
OWN_REFERRER = {"referrer-policy": "same-origin"}
"""Without any, a browser does not say either that a form is ours."""
FRAMING = "; frame-src 'self'"
Value = TypeVar("Value")


@lru_cache
def environment() -> Environment:
    """Jinja with what all templates know."""
    made = Environment(
        loader=PackageLoader("nlp_distill.service.page"),
        undefined=StrictUndefined,
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {"size": size, "spent": spent, "roughly": roughly, "moment": moment, "short": short}
    made.globals |= {"asset": asset, "version": __version__, "LIVE": LIVE, "TERMINAL": TERMINAL}
    return made


def render(request: Request, template: str, code: int = 200, **values: Any) -> HTMLResponse:
    """A page, or a part of one."""
    who = request.scope["state"].get("who")
    common = {"path": request.url.path, "signed_in": who is not None, "may": who.may if who else lambda scope: False}
    text = environment().get_template(template).render(**common, **values)
    return HTMLResponse(text, code, OWN_REFERRER)


def go(place: str) -> RedirectResponse:
    """On to a page, by GET."""
    return RedirectResponse(place, 303)


class PageRoute(APIRoute):
    """A route whose problems are told as a page."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """As the framework's."""
        handle = super().get_route_handler()

        async def handled(request: Request) -> Response:
            try:
                return await handle(request)
            except RequestValidationError:
                return told(request, missing("such page"))
            except UserError as error:
                return told(request, HTTPException(422, str(error)))
            except HTTPException as error:
                return told(request, error)

        return handled


def told(request: Request, error: HTTPException) -> HTMLResponse:
    """A problem as a page."""
    titles = {403: "Not with this token", 404: "Not here", 409: "Not now"}
    title = titles.get(error.status_code, "That did not work")
    return render(request, "problem.html", error.status_code, title=title, detail=error.detail)


def page_router() -> APIRouter:
    """A router for pages."""
    return APIRouter(route_class=PageRoute, include_in_schema=False)


@lru_cache
def assets() -> dict[str, str]:
    """The files that pages load: name → the start of their sha256."""
    files = (file for file in STATIC.iterdir() if file.suffix in KINDS)
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest()[:12] for file in files}


def asset(name: str) -> str:
    """Where a file of ours is found; its content is part of the address."""
    return f"/assets/{name}?v={assets()[name]}"


def asset_response(name: str) -> Response:
    """The file. Raises `Problem`."""
    if name not in assets():
        raise missing("file")
    return FileResponse(STATIC / name, media_type=KINDS[Path(name).suffix], headers=KEPT)


async def form_of(request: Request) -> dict[str, list[str]]:
    """The fields of a plain form, in order."""
    found: dict[str, list[str]] = {}
    body = (await request.body()).decode("utf-8", "replace")
    for name, value in parse_qsl(body, keep_blank_values=True, max_num_fields=2000):
        found.setdefault(name, []).append(value.replace("\r\n", "\n"))
    return found


def one(form: dict[str, list[str]], name: str) -> str:
    """A field's only value, empty where it was not sent."""
    return form.get(name, [""])[0].strip()


def size(value: float | None) -> str:
    """Bytes for people; 10⁶ are a megabyte, as in reports."""
    if value is None:
        return "–"
    for unit, step in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if value >= step:
            return f"{value / step:.3g} {unit}" if value < 100 * step else f"{value / step:,.0f} {unit}"
    return f"{value:.0f} bytes"


def spent(value: float | None) -> str:
    """Seconds for people."""
    if value is None:
        return "–"
    if value < 60:
        return f"{value:.0f} s"
    minutes, seconds = divmod(round(value), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {seconds:02d} s"


def roughly(value: float) -> str:
    """Seconds that nobody knows exactly."""
    if value < 100:
        return f"{max(1, round(value / 10)) * 10} seconds"
    return f"{value / 60:.0f} minutes" if value < 100 * 60 else f"{value / 3600:.1f} hours"


def moment(value: float | None) -> str:
    """Seconds since 1970 as a moment; the page's script tells it in the reader's own time."""
    return "–" if value is None else datetime.fromtimestamp(value, timezone.utc).strftime("%d %b %Y, %H:%M UTC")


def short(name: str) -> str:
    """The end of an id, by which commands know it, too."""
    return name[-8:]


def fix_of(reason: str | None) -> str:
    """What to do about a reason, where we know."""
    return FIXES.get(Reason(reason), "") if reason else ""
