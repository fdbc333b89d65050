"""Who may ask what: Host, Origin, token, a body's size and time; and headers that every answer carries.

A page of another site can make a browser send requests here, and a name that its owner points at this machine can make
them look local (DNS rebinding). So a name in `Host` must be known, a request that changes something must come from
our own page or from no page, and beyond loopback every request needs the token.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol
from urllib.parse import quote, urlsplit

import anyio
from starlette.datastructures import Headers
from starlette.responses import RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from nlp_distill.web.problems import Problem

SAFE_METHODS = ("GET", "HEAD", "OPTIONS")
HEADERS = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
        "font-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
}
ALWAYS = [(name.encode(), value.encode()) for name, value in {**HEADERS, "cache-control": "no-store"}.items()]
COOKIE = "nlpd_session"


def one_token(token: str) -> Callable[[str], object | None]:
    """`Access.known` for a service that has a single token."""
    wanted = hashlib.sha256(token.encode()).digest()

    def known(given: str) -> object | None:
        same = hmac.compare_digest(hashlib.sha256(given.encode("utf-8", "replace")).digest(), wanted)
        return "token" if same else None

    return known


@dataclass(frozen=True)
class Access:
    """Who may ask.

    `known`: token → who it belongs to, or None; no function: nobody needs a token. `hosts`: names besides `localhost`
    that `Host` may say (addresses may always: nobody can point an address elsewhere). `open_paths`: what may be read
    without token: health, and pages that hold nothing secret; `/page/*` stands for all below `/page/`. `open_posts`:
    the same for POST: where a token is exchanged for a session. `sign_in`: the page that browsers are sent to where a
    token is needed.
    """

    known: Callable[[str], object | None] | None = None
    hosts: tuple[str, ...] = ()
    open_paths: tuple[str, ...] = ("/health/live", "/health/ready")
    open_posts: tuple[str, ...] = ()
    sign_in: str = ""

    def is_open(self, method: str, path: str) -> bool:
        """Whether a request needs no token."""
        if method in ("GET", "HEAD"):
            given = self.open_paths
        elif method == "POST":
            given = self.open_posts
        else:
            return False
        return any(path.startswith(name[:-1]) if name.endswith("*") else path == name for name in given)


class Room(Protocol):
    """Where requests may be many. What it has no place for is refused before its body is read or a route looked for."""

    def look(self) -> None:
        """Raises `Problem` where it is full."""

    def enter(self) -> None:
        """Take a place. Raises `Problem` where there is none."""

    def leave(self) -> None:
        """Give the place back."""


class Guard:
    """ASGI middleware. `scope["state"]` gets `request_id`, and `who` as `Access.known` gave it.

    `room_of`: the room that a request asks for, if any. Its place is taken once its body has arrived: one that is sent
    slowly holds none.
    """

    def __init__(
        self,
        app: ASGIApp,
        access: Access,
        max_body: int,
        larger: Mapping[str, int],
        body_seconds: float,
        room_of: Callable[[Scope], Room | None],
    ) -> None:
        self.app = app
        self.access = access
        self.max_body = max_body
        self.larger = larger
        self.body_seconds = body_seconds
        self.room_of = room_of

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse, or pass on."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        name = f"{random.getrandbits(128):032x}"
        state = scope.setdefault("state", {})
        state["request_id"] = name

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                given = {header for header, _ in message["headers"]}
                ours = [pair for pair in ALWAYS if pair[0] not in given]
                message["headers"] = [*message["headers"], *ours, (b"x-request-id", name.encode())]
            await send(message)

        try:
            headers = Headers(scope=scope)
            self._check_host(headers)
            by_cookie = self._check_token(scope, headers, state)
            self._check_origin(scope, headers, by_cookie)
            room = self.room_of(scope)
            if room is not None:
                room.look()
            receive = self._within_caps(scope, headers, receive)
            if room is not None:
                receive = await _whole(receive)
                room.enter()
        except Problem as problem:
            elsewhere = self._to_sign_in(scope, Headers(scope=scope), problem)
            if elsewhere is None:
                await problem.send(name, send_with_headers)
            else:
                await elsewhere(scope, receive, send_with_headers)
            return
        try:
            await self.app(scope, receive, send_with_headers)
        finally:
            if room is not None:
                room.leave()

    def _to_sign_in(self, scope: Scope, headers: Headers, problem: Problem) -> Response | None:
        """Where a person is sent instead of being told of tokens; they come back to what they read."""
        person = "text/html" in headers.get("accept", "") and "authorization" not in headers
        if problem.status_code != 401 or not self.access.sign_in or not person:
            return None
        query = scope["query_string"].decode("ascii", "replace")
        place = scope["path"] + (f"?{query}" if query else "") if scope["method"] == "GET" else "/"
        return RedirectResponse(f"{self.access.sign_in}?next={quote(place)}", 303)

    def _check_host(self, headers: Headers) -> None:
        given = headers.getlist("host")
        if len(given) != 1 or not _host_known(given[0], self.access.hosts):
            raise Problem(421, "host_unknown", "This server does not answer to that name; allow it with --allow-host.")

    def _check_token(self, scope: Scope, headers: Headers, state: dict[str, Any]) -> bool:
        """Whether it was a cookie that let the request in."""
        if self.access.known is None:
            return False
        scheme, _, bearer = headers.get("authorization", "").partition(" ")
        cookie = _cookie(headers)
        token = bearer.strip() if scheme.lower() == "bearer" else cookie
        state["who"] = self.access.known(token) if token else None
        if state["who"] is None and not self.access.is_open(scope["method"], scope["path"]):
            detail = "This needs a token: send the header 'Authorization: Bearer TOKEN'."
            raise Problem(401, "token_needed", detail, {"WWW-Authenticate": "Bearer"})
        return token == cookie != ""

    def _check_origin(self, scope: Scope, headers: Headers, by_cookie: bool) -> None:
        if scope["method"] in SAFE_METHODS:
            return
        origin, site = headers.get("origin"), headers.get("sec-fetch-site")
        ours = origin is not None and _place(origin) == headers["host"].lower()
        foreign = (origin is not None and not ours) or site not in (None, "same-origin", "none")
        # A browser sends cookies along unasked, so there the page must show that it is ours.
        if foreign or (by_cookie and not ours and site != "same-origin"):
            raise Problem(403, "origin_refused", "Pages of other sites may not ask here.")

    def _within_caps(self, scope: Scope, headers: Headers, receive: Receive) -> Receive:
        """Give up on a body that is too large, as soon as that is known, or does not arrive in time."""
        most = next((size for prefix, size in self.larger.items() if scope["path"].startswith(prefix)), self.max_body)
        too_large = Problem(413, "body_too_large", f"The body has more than {most:,} bytes; send less at a time.")
        said = headers.get("content-length", "")
        if said.isdecimal() and int(said[:20]) > most:
            raise too_large
        end = time.monotonic() + self.body_seconds
        complete, size = False, 0

        async def capped() -> Message:
            nonlocal complete, size
            if complete:
                return await receive()
            try:
                # `asyncio.wait_for` would make a task of each wait, and let all other requests in between.
                with anyio.fail_after(end - time.monotonic()):
                    message = await receive()
            except TimeoutError:
                detail = f"The body did not arrive within {self.body_seconds:g} s; send it again, faster."
                raise Problem(408, "body_slow", detail, {"Connection": "close"}) from None
            complete = not message.get("more_body", False)
            size += len(message.get("body", b""))
            if size > most:
                raise too_large
            return message

        return capped


async def _whole(receive: Receive) -> Receive:
    """Wait for the body. Returns what gives it in one piece."""
    parts, message = [], await receive()
    while message["type"] == "http.request":
        parts.append(message.get("body", b""))
        if not message.get("more_body", False):
            message = {**message, "body": b"".join(parts)}
            break
        message = await receive()
    first: list[Message] = [message]

    async def again() -> Message:
        return first.pop() if first else await receive()

    return again


def _place(origin: str) -> str:
    try:
        return urlsplit(origin).netloc.lower()
    except ValueError:
        return ""


@lru_cache(maxsize=256)
def _host_known(given: str, hosts: tuple[str, ...]) -> bool:
    try:
        name = (urlsplit(f"//{given}").hostname or "").rstrip(".")
    except ValueError:
        return False
    if name == "localhost" or name in {host.lower().rstrip(".") for host in hosts}:
        return True
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _cookie(headers: Headers) -> str:
    for part in headers.get("cookie", "").split(";"):
        name, _, value = part.strip().partition("=")
        if name == COOKIE:
            return value
    return ""
