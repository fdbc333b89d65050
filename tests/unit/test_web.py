"""What all web processes share: one shape of error, and who may ask what."""

import asyncio
import itertools

import httpx
import pytest
from fastapi import FastAPI
from pydantic import BaseModel

from nlp_distill.errors import ListeningUnsafe, TokenUnfit, VariantUnknown
from nlp_distill.web.app import new_app
from nlp_distill.web.guard import COOKIE, Access, one_token
from nlp_distill.web.listening import TOKEN_VARIABLE, check_listening, read_token
from nlp_distill.web.problems import MEDIA_TYPE, Problem, ProblemDocument, problems
from nlp_distill.web.text import Text

TOKEN = "a-token-of-enough-letters"


class Body(BaseModel):
    text: Text
    count: int = 0


def small_app(access: Access, **settings: float) -> FastAPI:
    app = new_app("test", access, max_body=1000, **settings)

    @app.get("/health/live")
    async def live() -> str:
        return "ok"

    @app.post("/echo", responses=problems(409, 422))
    async def echo(body: Body) -> Body:
        if body.text == "busy":
            raise Problem(409, "busy", "It is busy.", {"Retry-After": "1"})
        if body.text == "wrong":
            raise VariantUnknown(folder="x", variant="y", known="z")
        if body.text == "bug":
            raise RuntimeError("a secret: /etc/token")
        return body

    return app


class Client:
    """Asks an app without a server."""

    def __init__(self, access=None, **settings):
        self.transport = httpx.ASGITransport(small_app(access or Access(), **settings), raise_app_exceptions=False)

    def ask(self, method, path, **sent):
        async def ask():
            async with httpx.AsyncClient(transport=self.transport, base_url="http://localhost", verify=False) as asking:
                return await asking.request(method, path, **sent)

        return asyncio.run(ask())

    def get(self, path, **sent):
        return self.ask("GET", path, **sent)

    def post(self, path, **sent):
        return self.ask("POST", path, **sent)


def is_problem(answer, status, code):
    assert answer.headers["content-type"] == MEDIA_TYPE, answer.text
    document = answer.json()
    assert ProblemDocument.model_validate(document, strict=True, extra="forbid").model_dump() == document
    assert (answer.status_code, document["status"], document["code"]) == (status, status, code), document
    assert document["request_id"] and document["title"] and document["detail"]
    assert document["type"] == f"urn:nlp-distill:{code.replace('_', '-')}"
    return document


async def chunks():
    for _ in range(2):
        yield b"x" * 600


@pytest.mark.parametrize(
    ("sent", "status", "code"),
    [
        ({"json": {"text": "busy"}}, 409, "busy"),
        ({"json": {"text": "wrong"}}, 422, "invalid_request"),
        ({"json": {"text": "bug"}}, 500, "internal_error"),
        ({"json": {"text": 3}}, 422, "invalid_request"),
        ({"json": {"count": "many", "text": None}}, 422, "invalid_request"),
        ({"json": [1]}, 422, "invalid_request"),
        ({"content": b"{", "headers": {"content-type": "application/json"}}, 422, "invalid_request"),
        ({"content": b'{"text": "\xff"}', "headers": {"content-type": "application/json"}}, 400, "bad_request"),
        ({"content": b'{"text": "\\ud800"}', "headers": {"content-type": "application/json"}}, 422, "invalid_request"),
        ({"content": b"[" * 900, "headers": {"content-type": "application/json"}}, 422, "invalid_request"),
        ({"content": b"text", "headers": {"content-type": "text/plain"}}, 422, "invalid_request"),
        ({"json": {"text": "x" * 1000}}, 413, "body_too_large"),
        ({"content": chunks, "headers": {"content-type": "application/json"}}, 413, "body_too_large"),
    ],
)
def test_every_error_is_a_problem_document(sent, status, code):
    if callable(sent.get("content")):
        sent = {**sent, "content": sent["content"]()}
    answer = Client().post("/echo", **sent)
    document = is_problem(answer, status, code)
    assert "secret" not in answer.text and "Traceback" not in answer.text
    assert document["errors"] or status != 422 or sent["json"]["text"] == "wrong"


def test_paths_and_methods_that_are_not_there():
    is_problem(Client().get("/nothing"), 404, "not_found")
    answer = Client().ask("DELETE", "/echo")
    is_problem(answer, 405, "method_not_allowed")
    assert answer.headers["allow"] == "POST"


def test_a_problem_keeps_its_headers_and_points_at_the_places():
    answer = Client().post("/echo", json={"text": "busy"})
    assert answer.headers["retry-after"] == "1"
    document = Client().post("/echo", json={"count": "x"}).json()
    assert {entry["pointer"] for entry in document["errors"]} == {"/body/text", "/body/count"}


def test_every_answer_carries_the_headers_that_keep_pages_apart():
    for answer in (Client().get("/health/live"), Client().get("/nothing")):
        assert "default-src 'none'" in answer.headers["content-security-policy"]
        assert "unsafe" not in answer.headers["content-security-policy"]
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["x-request-id"]


@pytest.mark.parametrize(
    ("host", "allowed"),
    [
        *(
            (host, True)
            for host in ("localhost", "localhost:80", "127.0.0.1:8000", "[::1]:8000", "10.1.2.3", "my.host")
        ),
        *((host, False) for host in ("evil.example", "localhost.evil.example", "127.0.0.1.evil.example", "", "a:b:c")),
        *((host, False) for host in ("localhost@evil.example:x", "[::1", "my.host.evil")),
    ],
)
def test_only_known_names_may_be_asked_for(host, allowed):
    answer = Client(Access(hosts=("my.host",))).get("/health/live", headers={"host": host})
    if allowed:
        assert answer.status_code == 200
    else:
        is_problem(answer, 421, "host_unknown")


ORIGINS = [None, "http://localhost", "http://localhost:81", "http://evil.example", "null"]
SITES = [None, "same-origin", "none", "same-site", "cross-site"]


@pytest.mark.parametrize(("origin", "site", "cookie"), list(itertools.product(ORIGINS, SITES, [False, True])))
def test_other_sites_may_not_send(origin, site, cookie):
    headers = {"cookie": f"{COOKIE}={TOKEN}"} if cookie else {"authorization": f"Bearer {TOKEN}"}
    headers |= {name: value for name, value in (("origin", origin), ("sec-fetch-site", site)) if value}
    answer = Client(Access(one_token(TOKEN))).post("/echo", json={"text": "a"}, headers=headers)
    foreign = origin in ORIGINS[2:] or site in SITES[3:]
    shown = origin == "http://localhost" or site == "same-origin"
    if foreign or (cookie and not shown):
        is_problem(answer, 403, "origin_refused")
    else:
        assert answer.status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"authorization": "Bearer"},
        {"authorization": "Bearer wrong"},
        {"authorization": f"Basic {TOKEN}"},
        {"authorization": f"Bearer {TOKEN}x"},
        {"cookie": f"{COOKIE}=wrong"},
        {"cookie": f"other={TOKEN}"},
    ],
)
def test_without_the_token_only_health_answers(headers):
    guarded = Client(Access(one_token(TOKEN)))
    answer = guarded.post("/echo", json={"text": "a"}, headers=headers)
    is_problem(answer, 401, "token_needed")
    assert answer.headers["www-authenticate"] == "Bearer"
    is_problem(guarded.get("/nothing", headers=headers), 401, "token_needed")
    assert guarded.get("/health/live", headers=headers).status_code == 200


def test_open_paths_are_open_to_readers_only():
    access = Access(one_token(TOKEN), open_paths=("/health/*", "/page"), open_posts=("/session",))
    open_to = {
        ("HEAD", "/page"),
        ("GET", "/health/live"),
        ("HEAD", "/health/live"),
        ("GET", "/page"),
        ("POST", "/session"),
    }
    paths = ("/", "/health", "/health/live", "/page", "/page/x", "/session", "/echo")
    for method, path in itertools.product(("GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS"), paths):
        assert access.is_open(method, path) == ((method, path) in open_to), (method, path)


def test_an_origin_that_is_none_and_a_name_in_other_letters():
    client = Client(Access(hosts=("Models.Example.com",)))
    answer = client.post("/echo", json={"text": "x"}, headers={"origin": "http://["})
    is_problem(answer, 403, "origin_refused")
    assert client.get("/health/live", headers={"host": "models.example.com:80"}).status_code == 200


def test_a_body_that_does_not_arrive_in_time_is_given_up():
    async def drip():
        yield b'{"text": '
        await asyncio.sleep(5)
        yield b'"a"}'

    answer = Client(body_seconds=0.1).post("/echo", content=drip(), headers={"content-type": "application/json"})
    is_problem(answer, 408, "body_slow")


def test_a_path_may_take_larger_bodies():
    assert Client(larger={"/echo": 2000}).post("/echo", json={"text": "x" * 1000}).status_code == 200
    is_problem(Client(larger={"/other": 2000}).post("/echo", json={"text": "x" * 1000}), 413, "body_too_large")


def test_beyond_loopback_a_token_is_needed(monkeypatch, tmp_path):
    for host in ("127.0.0.1", "localhost", "::1"):
        check_listening(host, None)
    for host in ("0.0.0.0", "::", "192.168.1.2", "my.host"):
        with pytest.raises(ListeningUnsafe, match=TOKEN_VARIABLE):
            check_listening(host, None)
        check_listening(host, TOKEN)


def test_a_token_comes_from_a_file_or_the_environment(monkeypatch, tmp_path):
    monkeypatch.delenv(TOKEN_VARIABLE, raising=False)
    assert read_token() is None
    monkeypatch.setenv(TOKEN_VARIABLE, TOKEN)
    assert read_token() == TOKEN
    file = tmp_path / "token"
    for text in ("short", "with blanks and enough letters", "ünïcödé-and-enough-letters"):
        file.write_text(text)
        with pytest.raises(TokenUnfit):
            read_token(file)
    file.write_text(f"{TOKEN}\n")
    assert read_token(file) == TOKEN
    with pytest.raises(TokenUnfit):
        read_token(tmp_path / "absent")
