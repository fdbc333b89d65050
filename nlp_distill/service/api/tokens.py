"""Tokens, made and revoked by an administrator."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from sqlalchemy import Row, select

from nlp_distill.service.api.jobs import seconds
from nlp_distill.service.api.models import Listed, Token, TokenRequest
from nlp_distill.service.api.service import Admin, Served, TokenId, missing
from nlp_distill.service.home import now_ms
from nlp_distill.service.store import tokens as store
from nlp_distill.service.store.tables import tokens
from nlp_distill.web.problems import Problem, problems

router = APIRouter(prefix="/v1/tokens", tags=["tokens"])


def _shown(row: Row[Any], token: str | None = None) -> Token:
    times = {name: seconds(row._mapping[name]) for name in ("created_at", "expires_at")}
    return Token(id=row.id, name=row.name, scopes=row.scopes, token=token, **times)


@router.post("", status_code=201, responses=problems(422))
def create(request: TokenRequest, service: Served, _: Admin) -> Token:
    """Make a token. It is shown this once; we keep its hash."""
    expires_at = now_ms() + request.expires_s * 1000 if request.expires_s else None
    scopes = [scope for scope in store.SCOPES if scope in request.scopes]
    with service.database.writing() as connection:
        token_id, token = store.issue(connection, request.name, scopes, expires_at)
        return _shown(connection.execute(select(tokens).where(tokens.c.id == token_id)).one(), token)


@router.get("")
def listed(service: Served, _: Admin) -> Listed[Token]:
    """Tokens that were not revoked, without their secrets."""
    with service.database.reading() as connection:
        return Listed(data=[_shown(row) for row in store.listed(connection)])


@router.delete("/{token_id}", status_code=204, responses=problems(404, 409, 422))
def revoke(token_id: TokenId, request: Request, service: Served, who: Admin) -> None:
    """Let a token in no more."""
    if who.token_id == token_id:
        raise Problem(409, "own_token", "That is the token you ask with; revoke it with another.")
    with service.database.writing() as connection:
        if not store.revoke(connection, token_id):
            raise missing("token")
    request.app.state.sessions.forget()
