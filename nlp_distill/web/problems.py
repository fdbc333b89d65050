"""Errors over HTTP: RFC 9457 problem documents, for everything that can go wrong, in one shape.

A document says what is wrong and what to do; it never holds a traceback, a path of this machine, a token or the input.
"""

from __future__ import annotations

import http
import re
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, Field
from pydantic_core import to_json
from starlette.exceptions import HTTPException
from starlette.types import Send

from nlp_distill.errors import UserError

MEDIA_TYPE = "application/problem+json"
PLACE = re.compile(r"(?!(str|int|float|bool|list|dict|constrained-str)$)[a-z_~/][\w.~/-]{0,80}", re.ASCII)
MOST_ERRORS = 8
"""Wrong places of one body that are listed."""


class Place(BaseModel):
    """One place of a request that is wrong."""

    pointer: str = Field(description="JSON pointer to the place, from the body, the path or the query.")
    message: str = Field(description="What is wrong there.")


class ProblemDocument(BaseModel):
    """RFC 9457's document, with a code for machines."""

    type: str = Field(description="A URN that names the kind of problem.")
    title: str = Field(description="The kind of problem, in words.")
    status: int = Field(description="The HTTP status.")
    detail: str = Field(description="What is wrong here, and what to do.")
    code: str = Field(description="The kind of problem, for machines.")
    request_id: str = Field(description="The request, as our log names it.")
    errors: list[Place] = Field(default_factory=list, description="Wrong places, where there are several.")


class Problem(HTTPException):
    """Raise it anywhere below a route; the client gets the document.

    `code`: snake_case, stable; `detail`: one sentence with the place and the fix.
    """

    def __init__(
        self,
        status: int,
        code: str,
        detail: str,
        headers: Mapping[str, str] | None = None,
        errors: Sequence[Place] = (),
    ) -> None:
        super().__init__(status, detail, headers)
        self.code = code
        self.errors = list(errors)

    def response(self, request_id: str) -> Response:
        """The document as a response."""
        return _respond(self.status_code, self.code, self.detail, request_id, self.headers, self.errors)

    async def send(self, request_id: str, send: Send) -> None:
        """The same, without what a response object takes."""
        body = _document(self.status_code, self.code, self.detail, request_id, self.errors)
        headers = [(name.lower().encode(), value.encode()) for name, value in (self.headers or {}).items()]
        headers += [(b"content-type", MEDIA_TYPE.encode()), (b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": self.status_code, "headers": headers})
        await send({"type": "http.response.body", "body": body})


def _respond(
    status: int,
    code: str,
    detail: str,
    request_id: str,
    headers: Mapping[str, str] | None = None,
    errors: Sequence[Place] = (),
) -> Response:
    written = _document(status, code, detail, request_id, errors)
    return Response(written, status, headers, MEDIA_TYPE)


def _document(status: int, code: str, detail: str, request_id: str, errors: Sequence[Place]) -> bytes:
    """A `ProblemDocument` as JSON; without the model, most of the time where thousands a second are refused."""
    document = {
        "type": f"urn:nlp-distill:{code.replace('_', '-')}",
        "title": http.HTTPStatus(status).phrase,
        "status": status,
        "detail": detail,
        "code": code,
        "request_id": request_id,
        "errors": errors,
    }
    return to_json(document)


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The `responses` of a route or router that may answer with these problems."""
    schema = {"$ref": "#/components/schemas/ProblemDocument"}
    return {
        status: {
            "description": http.HTTPStatus(status).phrase,
            "model": ProblemDocument,
            "content": {MEDIA_TYPE: {"schema": schema}},
        }
        for status in statuses
    }


def request_id(request: Request) -> str:
    """The name that the guard gave a request."""
    return str(request.scope.get("state", {}).get("request_id", ""))


def answer_with_problems(app: FastAPI) -> None:
    """Every error of an app becomes a problem document: ours, the framework's, and those that nobody foresaw."""

    @app.exception_handler(HTTPException)
    async def of_http(request: Request, error: HTTPException) -> Response:
        if isinstance(error, Problem):
            return error.response(request_id(request))
        status = error.status_code
        code = http.HTTPStatus(status).phrase.lower().replace(" ", "_")
        headers = dict(error.headers or {})
        if status == 405 and (documented := app.openapi()["paths"].get(request.url.path)):
            # The framework names the methods of the first route only, where several have the path.
            headers["Allow"] = ", ".join(sorted(method.upper() for method in documented))
        return _respond(status, code, _own_words(request, error), request_id(request), headers)

    @app.exception_handler(RequestValidationError)
    async def of_validation(request: Request, error: RequestValidationError) -> Response:
        places = [_place(entry) for entry in error.errors()[:MOST_ERRORS]]
        left = len(error.errors()) - len(places)
        said = "; ".join(f"{place.pointer}: {place.message}" for place in places[:2])
        more = f" (and {left + len(places) - 2} more)" if left + len(places) > 2 else ""
        detail = f"The request is not as the API describes it: {said}{more}."
        return _respond(422, "invalid_request", detail, request_id(request), errors=places)

    @app.exception_handler(UserError)
    async def of_user(request: Request, error: UserError) -> Response:
        return _respond(422, "invalid_request", str(error), request_id(request))

    @app.exception_handler(Exception)
    async def of_all_else(request: Request, error: Exception) -> Response:
        detail = "Something broke on our side; the server's log has it under this request_id."
        return _respond(500, "internal_error", detail, request_id(request))


def _own_words(request: Request, error: HTTPException) -> str:
    """A sentence for the framework's own errors."""
    sentences = {
        400: "The body cannot be read as JSON; send one JSON object in UTF-8.",
        404: f"There is nothing at {request.url.path[:100]!a}; /openapi.json lists what there is.",
        405: f"{request.method[:20]} is not possible here; /openapi.json lists what is.",
    }
    return sentences.get(error.status_code, str(error.detail))


def _place(entry: Any) -> Place:
    """Where validation failed and why, without the input, which may be long or secret."""
    # Of a choice between types pydantic names each, which is no place in the body.
    place = [part for part in entry["loc"] if isinstance(part, int) or PLACE.fullmatch(part)]
    if entry["type"] == "json_invalid":
        return Place(pointer="/body", message=f"it is no JSON at character {entry['loc'][-1]}")
    pointer = "/" + "/".join(str(part).replace("~", "~0").replace("/", "~1") for part in place)
    message = str(entry["msg"]).removeprefix("Value error, ")[:200].encode("utf-8", "replace").decode()
    return Place(pointer=pointer, message=message[:1].lower() + message[1:])
