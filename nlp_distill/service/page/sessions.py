"""Sessions of browsers: a cookie that names a token and is signed; and codes that sign in once."""

from __future__ import annotations

import hashlib
import hmac
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from sqlalchemy import Connection

from nlp_distill.service.home import Home, now_ms
from nlp_distill.service.store import tokens
from nlp_distill.service.store.database import Database
from nlp_distill.service.store.tokens import Who

SESSION_S = 7 * 86_400
"""A training may take days, and who started it comes back to it."""
CODE_S = 900.0
LATELY_S = 1.0
"""A token that was good is asked for again after so long; one that is revoked here is forgotten at once."""
MOST_LATELY = 1000
PREFIX = "session"


@dataclass
class Sessions:
    """Issues and reads sessions of a home. One ends with its token, with `SESSION_S`, or when the key is removed."""

    home: Home
    database: Database
    _codes: dict[bytes, float] = field(default_factory=dict)
    _lately: dict[bytes, tuple[float, Who]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._key = self.home.session_key()

    def issue(self, who: Who) -> str:
        """A cookie's value."""
        said = f"{PREFIX}.{who.token_id}.{now_ms() + SESSION_S * 1000}"
        return f"{said}.{self._signed(said)}"

    def _signed(self, said: str) -> str:
        return hmac.new(self._key, said.encode(), hashlib.sha256).hexdigest()

    def known(self, given: str) -> Who | None:
        """Whoever a token or a session belongs to."""
        if not given.startswith(f"{PREFIX}."):
            return self._now_or_lately(tokens.whose, given, tokens.digest(given))
        token_id = self._named(given)
        return self._now_or_lately(tokens.by_id, token_id, token_id.encode()) if token_id else None

    def _now_or_lately(self, ask: Callable[[Connection, str], Who | None], what: str, name: bytes) -> Who | None:
        now = time.monotonic()
        since, who = self._lately.get(name, (0.0, None))
        if who is not None and now - since <= LATELY_S:
            return who
        with self.database.reading() as connection:
            who = ask(connection, what)
        if len(self._lately) >= MOST_LATELY:
            self.forget()
        if who is not None:
            self._lately[name] = now, who
        return who

    def forget(self) -> None:
        """Look at every token anew."""
        self._lately = {}

    def _named(self, session: str) -> str | None:
        """The token that a session stands for, if it was signed here and has not expired."""
        said, _, mac = session.rpartition(".")
        if not hmac.compare_digest(self._signed(said).encode(), mac.encode("utf-8", "replace")):
            return None
        _, token_id, expires_at = said.split(".")
        return token_id if int(expires_at) > now_ms() else None

    def new_code(self) -> str:
        """Signs its owner in once, within `CODE_S`; so it may be part of an address that is shown."""
        code = secrets.token_urlsafe(24)
        self._codes[tokens.digest(code)] = time.monotonic() + CODE_S
        return code

    def redeem(self, given: str) -> Who | None:
        """Whoever signs in with a token, or the owner with a code, which is worth nothing afterwards."""
        expires = self._codes.pop(tokens.digest(given), None)
        if expires is not None and time.monotonic() < expires:
            return self.known(self.home.admin_token())
        return None if given.startswith(f"{PREFIX}.") else self.known(given)
