"""Tokens: shown once, kept as hashes, each with scopes."""

from __future__ import annotations

import hashlib
import secrets
from dataclasses import dataclass
from typing import Any, Literal, get_args

from sqlalchemy import Connection, insert, select, update
from sqlalchemy.dialects import sqlite

from nlp_distill.service.home import new_id, now_ms
from nlp_distill.service.store.tables import tokens

Scope = Literal["read", "submit", "predict", "admin"]
SCOPES: tuple[Scope, ...] = get_args(Scope)


@dataclass(frozen=True)
class Who:
    """Whoever a token belongs to."""

    token_id: str
    scopes: frozenset[str]

    def may(self, scope: Scope) -> bool:
        """An administrator may everything."""
        return scope in self.scopes or "admin" in self.scopes


def digest(token: str) -> bytes:
    """What is kept: tokens have 256 random bits, so a plain hash cannot be turned back."""
    return hashlib.sha256(token.encode("utf-8", "replace")).digest()


def issue(connection: Connection, name: str, scopes: list[Scope], expires_at: int | None) -> tuple[str, str]:
    """A new token: its id, and the token itself, which nobody can ask for again."""
    token_id, token = new_id("token"), secrets.token_urlsafe(32)
    values = {"id": token_id, "created_at": now_ms(), "name": name, "scopes": scopes, "expires_at": expires_at}
    connection.execute(insert(tokens).values(**values, digest=digest(token)))
    return token_id, token


def keep_admin(connection: Connection, token: str) -> None:
    """Let the owner's token in, which is that of the service's folder; one that it replaces is revoked."""
    mine = digest(token)
    values = {"id": _owners_id(mine), "created_at": now_ms(), "name": "admin", "scopes": ["admin"]}
    kept = sqlite.insert(tokens).values(**values, digest=mine)
    connection.execute(kept.on_conflict_do_update(index_elements=[tokens.c.digest], set_={"revoked": False}))
    for row in connection.execute(select(tokens).where(tokens.c.digest != mine)).all():
        if row.id == _owners_id(row.digest):
            revoke(connection, row.id)


def _owners_id(secret: bytes) -> str:
    """Tokens that were issued have random ids; the owner's can be told by its own."""
    return f"token_{secret.hex()[:32]}"


def whose(connection: Connection, token: str) -> Who | None:
    """Whoever has this token; None for nobody, and for one that was revoked or has expired."""
    return _valid(connection.execute(select(tokens).where(tokens.c.digest == digest(token))).first())


def by_id(connection: Connection, token_id: str) -> Who | None:
    """The same of a token that is known by its id, as in a session."""
    return _valid(connection.execute(select(tokens).where(tokens.c.id == token_id)).first())


def _valid(row: Any) -> Who | None:
    if row is None or row.revoked or (row.expires_at is not None and row.expires_at <= now_ms()):
        return None
    return Who(row.id, frozenset(row.scopes))


def listed(connection: Connection) -> list[Any]:
    """All that were not revoked, the newest first."""
    return list(connection.execute(select(tokens).where(~tokens.c.revoked).order_by(tokens.c.created_at.desc())))


def revoke(connection: Connection, token_id: str) -> bool:
    """Whether there was such a token."""
    found = update(tokens).where(tokens.c.id == token_id, ~tokens.c.revoked).values(revoked=True)
    return connection.execute(found).rowcount == 1
