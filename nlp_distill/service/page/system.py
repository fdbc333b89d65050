"""The machine, the service on it, and who may use it."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import Depends, Request
from fastapi.responses import Response
from pydantic import ValidationError

from nlp_distill.service.api import system as api
from nlp_distill.service.api import tokens
from nlp_distill.service.api.models import TokenRequest
from nlp_distill.service.api.service import Admin, Reader, Served, Service, TokenId
from nlp_distill.service.page.rendering import form_of, go, one, page_router, render
from nlp_distill.service.store.tokens import SCOPES, Who

router = page_router()
Sent = Annotated[dict[str, list[str]], Depends(form_of)]
DAYS = ("1", "7", "30", "90", "365", "")


@router.get("/system")
def shown(request: Request, service: Served, who: Reader) -> Response:
    """Versions, disk, memory, workers; for administrators the tokens."""
    return _shown(request, service, who)


def _shown(request: Request, service: Service, who: Who, status: int = 200, **said: Any) -> Response:
    known = tokens.listed(service, who).data if who.may("admin") else []
    told = {"made": None, "wrong": "", **said}
    return render(
        request,
        "system.html",
        status,
        system=api.system(service, who),
        tokens=known,
        mine=who.token_id,
        scopes=SCOPES,
        days=DAYS,
        **told,
    )


@router.post("/system/tokens")
def made(request: Request, service: Served, who: Admin, sent: Sent) -> Response:
    """Make a token and show it, this once."""
    days = one(sent, "days")
    try:
        asked = TokenRequest.model_validate(
            {
                "name": one(sent, "name"),
                "scopes": sent.get("scope", []),
                "expires_s": int(days) * 86_400 if days.isdecimal() else None,
            }
        )
    except ValidationError as error:
        wrong = "Choose at least one thing that it may do." if not sent.get("scope") else str(error.errors()[0]["msg"])
        return _shown(request, service, who, 422, wrong=wrong)
    return _shown(request, service, who, made=tokens.create(asked, service, who))


@router.post("/system/tokens/{token_id}/revoke")
def revoked(token_id: TokenId, request: Request, service: Served, who: Admin) -> Response:
    """Let a token in no more."""
    tokens.revoke(token_id, request, service, who)
    return go("/system")
