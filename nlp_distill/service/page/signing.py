"""Signing in with a token or a code that is worth one sign-in, and out."""

from __future__ import annotations

from fastapi import Request
from fastapi.responses import Response

from nlp_distill.service.page.rendering import form_of, go, one, page_router, render
from nlp_distill.service.page.sessions import SESSION_S, Sessions
from nlp_distill.web.guard import COOKIE

router = page_router()
SIGN_IN = "/login"


@router.get(SIGN_IN)
def asked(request: Request, next: str = "/") -> Response:
    """The form."""
    return render(request, "login.html", next=_inside(next), wrong=False)


@router.post(SIGN_IN)
async def sign_in(request: Request) -> Response:
    """A token or code for a cookie."""
    form = await form_of(request)
    sessions: Sessions = request.app.state.sessions
    who, place = sessions.redeem(one(form, "token")), _inside(one(form, "next"))
    if who is None:
        return render(request, "login.html", 401, next=place, wrong=True)
    answer = go(place)
    answer.set_cookie(COOKIE, sessions.issue(who), max_age=SESSION_S, httponly=True, samesite="strict")
    return answer


@router.post("/logout")
def sign_out() -> Response:
    """Forget the session in this browser."""
    answer = go(SIGN_IN)
    answer.delete_cookie(COOKIE, httponly=True, samesite="strict")
    return answer


def _inside(place: str) -> str:
    """A page of ours, whatever was asked for."""
    ours = place.startswith("/") and not place.startswith(("//", "/\\")) and place.isprintable()
    return place if ours else "/"
