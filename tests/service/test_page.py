"""The pages over plain HTTP, without a browser: what they show, what they take, what they refuse."""

import ast
import hashlib
import itertools
import json
import re
import shlex
from dataclasses import replace

import pytest
import yaml
from conftest import RECIPE, TestClient
from test_api import finished

import nlp_distill.service.page as page_room
from nlp_distill.recipe import Recipe
from nlp_distill.recipe_file import expand, parse_recipe, recipe_text, shipped_recipes
from nlp_distill.service.api.app import service_app
from nlp_distill.service.page import drafts
from nlp_distill.service.page import sessions as page_sessions
from nlp_distill.service.page.form import form_from, nested, recipe_of, short_form
from nlp_distill.service.page.rendering import STATIC, environment
from nlp_distill.service.reasons import Ending, Reason
from nlp_distill.service.store import journal
from nlp_distill.service.store.journal import Event, Point
from nlp_distill.service.store.queue import Queue
from nlp_distill.strict_yaml import read
from nlp_distill.web.guard import COOKIE

EVIL = "<img src=x onerror=alert(1)>\"'{{7*7}}"
OURS = {"Origin": "http://127.0.0.1"}
HTML = {"Accept": "text/html"}
POLICY = "default-src 'none'; script-src 'self'; style-src 'self'"


@pytest.fixture
def page(home, api):
    """A browser without JavaScript, signed in as the owner."""
    sign_in(api, home.admin_token())
    return api


def sign_in(client, token):
    client.headers.pop("Authorization", None)
    client.headers.update(HTML | OURS)
    client.follow_redirects = False
    client.cookies.clear()
    answer = client.post("/login", data={"token": token, "next": "/"})
    assert answer.status_code == 303, answer.text
    return answer


def fields_of(text):
    """Every field of the form of a job, as a browser would send it."""
    form = re.search(r'<form method="post" action="/new" id="draft".*?</form>', text, re.DOTALL).group()
    form = re.sub(r"<noscript>.*?</noscript>", "", form, flags=re.DOTALL)
    sent = {}
    for tag in re.finditer(r"<input\b[^>]*>|<select\b.*?</select>", form, re.DOTALL):
        name = re.search(r'name="([^"]*)"', tag.group()).group(1)
        if tag.group().startswith("<input"):
            value = re.search(r'value="([^"]*)"', tag.group())
        else:
            value = re.search(r'<option value="([^"]*)" selected', tag.group())
        sent[name] = value.group(1) if value else ""
    return sent


def job_of(page, answer):
    assert answer.status_code == 303, answer.text
    return page.get(f"/v1{answer.headers['location']}").json()


# Signing in


def test_a_browser_is_sent_to_sign_in_and_comes_back(api, home):
    del api.headers["Authorization"]
    api.follow_redirects = False
    answer = api.get("/jobs/job_" + "0" * 32, headers=HTML)
    assert answer.status_code == 303 and answer.headers["location"] == "/login?next=/jobs/job_" + "0" * 32
    assert api.get("/").status_code == 401, "programs are told, not sent elsewhere"
    assert api.get(answer.headers["location"]).status_code == 200
    assert sign_in(api, home.admin_token()).headers["location"] == "/"
    cookie = api.cookies[COOKIE]
    assert home.admin_token() not in cookie
    assert api.get("/").status_code == 200 and api.get("/v1/jobs").status_code == 200


def test_the_cookie_is_for_this_site_and_no_script(api, home):
    said = sign_in(api, home.admin_token()).headers["set-cookie"].lower()
    assert "httponly" in said and "samesite=strict" in said and "max-age=" in said and "path=/" in said


def test_nobody_is_sent_to_another_site(api, home):
    api.follow_redirects = False
    for place in ("//evil.example", "https://evil.example", "/\\evil.example", "evil", "/\nx"):
        answer = api.post("/login", data={"token": home.admin_token(), "next": place}, headers=OURS)
        assert answer.headers["location"] == "/", place


def test_a_code_signs_in_once_and_not_for_long(api, monkeypatch):
    sessions = api.app.state.sessions
    code, late = sessions.new_code(), sessions.new_code()
    sign_in(api, code)
    assert api.get("/v1/tokens").status_code == 200, "it is the owner's"
    assert api.post("/login", data={"token": code}).status_code == 401
    monkeypatch.setattr(page_sessions.time, "monotonic", lambda: 1e9)
    assert api.post("/login", data={"token": late}).status_code == 401
    assert code not in json.dumps([row["name"] for row in api.get("/v1/tokens").json()["data"]])


def test_what_is_no_session_lets_nobody_in(api, home, monkeypatch):
    sign_in(api, home.admin_token())
    good = api.cookies[COOKIE]
    prefix, token_id, expires, mac = good.split(".")
    forged = [
        f"{prefix}.{token_id}.{int(expires) + 1}.{mac}",
        f"{prefix}.token_{'0' * 32}.{expires}.{mac}",
        f"{prefix}.{token_id}.{expires}.",
        "session.",
        "session.a.b.c.d",
        "session.\xe9",
    ]
    api.cookies.clear()
    for value in forged:
        assert api.get("/", headers=[(b"cookie", f"{COOKIE}={value}".encode("latin-1"))]).status_code == 303, value
        assert api.post("/login", data={"token": value}).status_code == 401
    assert api.get("/", headers={"Cookie": f"{COOKIE}={good}"}).status_code == 200
    assert api.post("/login", data={"token": good}).status_code == 401, "a session makes no other"
    monkeypatch.setattr(page_sessions, "now_ms", lambda: int(expires))
    assert api.get("/", headers={"Cookie": f"{COOKIE}={good}"}).status_code == 303, "it has expired"


def test_a_session_lasts_over_a_restart_and_ends_with_its_token(home, api):
    made = api.post("/v1/tokens", json={"scopes": ["read"]}).json()
    sign_in(api, made["token"])
    cookie = {"Cookie": f"{COOKIE}={api.cookies[COOKIE]}", **HTML}
    with TestClient(service_app(home), base_url="http://127.0.0.1", follow_redirects=False) as other:
        # The same home, as after a restart.
        assert other.get("/", headers=cookie).status_code == 200
        other.delete(f"/v1/tokens/{made['id']}", headers={"Authorization": f"Bearer {home.admin_token()}"})
        assert other.get("/", headers=cookie).status_code == 303


def test_signing_out(page):
    answer = page.post("/logout")
    assert answer.status_code == 303 and COOKIE not in page.cookies


POSTS = ["/new", "/new/yaml", "/new/upload", "/new/check", "/new/estimate", "/system/tokens", "/logout"]
POSTS += [f"/jobs/job_{'0' * 32}/{what}" for what in ("cancel", "pause", "resume", "retry", "clone", "remove", "try")]


def test_forms_of_other_sites_change_nothing(page):
    for path, origin in itertools.product(POSTS, ("http://evil.example", "null", "http://127.0.0.1:81")):
        assert page.post(path, data={}, headers={"Origin": origin}).status_code == 403, path
    del page.headers["Origin"]
    for path in POSTS:
        assert page.post(path, data={}).status_code == 403, "a browser says where a form is from"
        assert page.post(path, data={}, headers={"Sec-Fetch-Site": "cross-site"}).status_code == 403


def test_without_a_session_forms_change_nothing(api):
    del api.headers["Authorization"]
    api.follow_redirects = False
    for path in ("/login", *POSTS):
        assert api.post(path, data={"token": "nothing"}, headers=OURS).status_code == 401, path
        assert api.post(path, data={}, headers={"Origin": "http://evil.example"}).status_code in (401, 403), path


def test_scopes_hold_on_the_page_too(home, api, submitted):
    job = submitted(name="seen")
    tokens = {scope: api.post("/v1/tokens", json={"scopes": [scope]}).json()["token"] for scope in ("read", "predict")}
    sign_in(api, tokens["read"])
    assert "seen" in api.get("/").text and "New job" not in api.get("/").text
    shown = api.get(f"/jobs/{job['id']}").text
    assert "do-cancel" not in shown and "Change and submit" not in shown
    assert "Tokens" not in api.get("/system").text
    for path in ("/new", "/new/yaml", "/system/tokens", f"/jobs/{job['id']}/cancel", f"/jobs/{job['id']}/clone"):
        answer = api.post(path, data={"yaml": yaml.safe_dump(RECIPE), "scope": "admin"})
        assert answer.status_code == 403 and "needs a token with the scope" in answer.text, path
    assert api.get("/new").status_code == 403
    sign_in(api, tokens["predict"])
    assert api.get("/").status_code == 403
    assert api.get(f"/v1/jobs/{job['id']}", headers={"Authorization": f"Bearer {home.admin_token()}"}).json()["status"]


# What pages are


def test_every_page_is_strict_and_asks_nothing_of_others(page, submitted):
    page.headers.update(OURS)
    job = submitted()["id"]
    paths = ["/", "/new", "/new?template=quickstart", "/compare", "/try", "/system", f"/jobs/{job}", "/login"]
    for path in paths:
        answer = page.get(path)
        assert answer.status_code == 200, path
        assert answer.headers["content-security-policy"].startswith(POLICY)
        assert "unsafe" not in answer.headers["content-security-policy"]
        assert answer.headers["cache-control"] == "no-store" and answer.headers["referrer-policy"] == "same-origin"
        assert not re.search(r"<script(?![^>]*src=)|<style|\sstyle=|\son\w+=|javascript:", answer.text), path
        for place in re.findall(r'(?:src|href|action)="([^"]*)"', answer.text):
            assert place.startswith(("/", "#", "data:,")), (path, place)
        assert answer.text.count("<h1") == 1 and 'lang="en"' in answer.text


def test_what_pages_load_is_there_and_kept(page):
    del page.cookies[COOKIE]
    for place in set(re.findall(r'"(/assets/[^"]*)"', page.get("/login").text)):
        answer = page.get(place)
        assert answer.status_code == 200 and "immutable" in answer.headers["cache-control"]
        assert answer.headers["content-type"].startswith(("text/css", "text/javascript"))
    for name in ("sha256sums", "README.md", "../sessions.py", "..%2fsessions.py", "nothing.js", ""):
        assert page.get(f"/assets/{name}").status_code in (303, 404)


def test_vendored_files_are_those_of_npm():
    sums = dict(reversed(line.split()) for line in (STATIC / "sha256sums").read_text().splitlines())
    ours = {"page.css", "page.js", "job.js", "sha256sums", "README.md"}
    assert {file.name for file in STATIC.iterdir()} - ours == set(sums)
    for name, digest in sums.items():
        assert hashlib.sha256((STATIC / name).read_bytes()).hexdigest() == digest, name


def test_templates_escape_whatever_they_show():
    made = environment()
    assert made.autoescape is True
    for name in made.list_templates():
        source = made.loader.get_source(made, name)[0]
        assert "safe" not in re.findall(r"\|\s*(\w+)", source) and "autoescape" not in source, name
    assert page_room.__doc__


def test_a_page_that_is_not_there_says_so(page):
    for path in ("/jobs/job_" + "0" * 32, "/jobs/nothing", "/new?template=nothing", "/new?job=job_" + "0" * 32):
        answer = page.get(path)
        assert answer.status_code == 404 and "There is no" in answer.text and "<h1>Not here" in answer.text


# Names, labels and logs are data


def test_hostile_names_are_text_everywhere(home, page, submitted):
    job = submitted(name=EVIL, tags=[EVIL[:60]])
    claim = finished(home, page, job["id"], Ending("failed", Reason.RUN_FAILED, EVIL))
    log = home.log(job["id"], claim.attempt_id)
    log.parent.mkdir(parents=True, exist_ok=True)
    log.write_text(EVIL)
    upload = page.post("/new/upload", files={"file": (f"{EVIL}.csv".replace("/", ""), f"text,label\n{EVIL},a\n")})
    assert upload.status_code == 303
    for path in (
        "/",
        f"/jobs/{job['id']}",
        f"/jobs/{job['id']}/state",
        "/new",
        f"/new?job={job['id']}",
        "/?tag=" + EVIL,
    ):
        text = page.get(path).text
        assert "onerror" in text, path
        assert "<img" not in text and "49" not in re.findall(r"alert\(1\)&gt;\S{6,12}", text), path


# Jobs


def test_the_list_filters_and_pages(page, submitted):
    page.headers.update(OURS)
    jobs = [submitted(name=f"n{n}", tags=["even"] if n % 2 == 0 else []) for n in range(30)]
    page.post(f"/jobs/{jobs[3]['id']}/cancel")
    names = re.findall(r"<bdi>(n\d+)</bdi>", page.get("/").text)
    assert names == [f"n{n}" for n in range(29, 4, -1)]
    older = re.search(r'href="(/\?[^"]*after=[^"]*)"', page.get("/").text).group(1).replace("&amp;", "&")
    assert re.findall(r"<bdi>(n\d+)</bdi>", page.get(older).text) == ["n4", "n3", "n2", "n1", "n0"]
    assert set(re.findall(r"<bdi>(n\d+)</bdi>", page.get("/?tag=even").text)) == {f"n{n}" for n in range(0, 30, 2)}
    assert re.findall(r"<bdi>(n\d+)</bdi>", page.get("/?status=cancelled").text) == ["n3"]
    assert "No job is like that" in page.get("/?status=failed").text
    part = page.get("/", headers={"HX-Request": "true"}).text
    assert "n29" in part and "<html" not in part


def test_nothing_yet_offers_the_quickstart(page):
    assert "/new?template=quickstart" in page.get("/").text and "No worker is there" in page.get("/").text


def running(api, job_id):
    """Let a worker begin a job and say a few things of it."""
    queue = Queue(api.app.state.service.database)
    claim = queue.claim("worker")
    assert claim.job_id == job_id
    queue.started(claim, "{}")
    said = [
        Event("stage", "data: started", {"stage": "data", "state": "started"}),
        Event("stage", "data: done", {"stage": "data", "state": "done", "seconds": 1.0}),
        Event("stage", "distill: started", {"stage": "distill", "state": "started"}),
        Event("progress", "distill 3/9", {"stage": "distill", "step": 3, "steps": 9}),
    ]
    points = [Point("distill.loss.hidden", step, 1 / step, 0) for step in (1, 2, 3)]
    points.append(Point("distill.epoch.selection_score", 1, 80.0, 0))
    queue.take_in(claim, said, points, 0, {"stage": "distill", "step": 3, "steps": 9})
    return queue, claim


def test_what_an_export_trains_has_its_curves_and_progress_hides_no_event(page, submitted, monkeypatch):
    job = submitted()
    queue, claim = running(page, job["id"])
    points = [
        Point(f"{stage}.loss.logits", 1, 0.5, 0) for stage in ("teacher", "quantization-aware, 4 bits", "distill")
    ]
    queue.take_in(claim, [Event("progress", f"distill {n}", {}) for n in range(50)], points, 0, None)
    queue.take_in(claim, [Event("log", "the last word")], [], 1, None)
    monkeypatch.setattr(journal, "read", lambda *asked, read=journal.read, **more: read(*asked[:3], 20, **more))
    text = page.get(f"/jobs/{job['id']}").text
    stages = [text.index(f"{stage}, loss of logits") for stage in ("quantization-aware, 4 bits", "distill", "teacher")]
    assert stages == sorted(stages) and "the last word" in text


def test_a_job_is_read_without_javascript(page, submitted):
    job = submitted(name="mine")
    running(page, job["id"])
    text = page.get(f"/jobs/{job['id']}").text
    assert re.search(r'<li class="done"><span class="dot".*?data</span>', text)
    assert re.search(r'<li class="started" aria-current="step">.*?distill</span>', text)
    assert "publish" not in re.search(r'<ol class="rail".*?</ol>', text, re.DOTALL).group()
    assert '<progress max="9" value="3"' in text and "3 of 9" in re.sub(r"<[^>]*>", "", text)
    assert text.count("<svg") == 2 and "loss of hidden" in text
    for what in ("pause", "cancel", "clone"):
        assert f'action="/jobs/{job["id"]}/{what}"' in text
    for what in ("resume", "retry", "remove"):
        assert f'action="/jobs/{job["id"]}/{what}"' not in text


def test_buttons_ask_what_the_api_asks(page, submitted):
    job = submitted(name="mine")["id"]

    def status():
        return page.get(f"/v1/jobs/{job}").json()["status"]

    for what, then in (("pause", "paused"), ("resume", "queued"), ("cancel", "cancelled"), ("retry", "queued")):
        assert page.post(f"/jobs/{job}/{what}").headers["location"] == f"/jobs/{job}" and status() == then
    refused = page.post(f"/jobs/{job}/remove")
    assert refused.status_code == 409 and "cancel it first" in refused.text and "<h1>Not now" in refused.text
    clone = page.post(f"/jobs/{job}/clone").headers["location"]
    assert clone != f"/jobs/{job}" and "mine" in page.get(clone).text
    page.post(f"/jobs/{job}/cancel")
    assert page.post(f"/jobs/{job}/remove").headers["location"] == "/"
    assert page.get(f"/jobs/{job}").status_code == 404
    assert page.post(f"/jobs/{job}/explode").status_code == 404


def test_a_failure_says_why_and_what_to_do(home, page, submitted):
    job = submitted()["id"]
    queue, claim = running(page, job)
    queue.finish(claim, Ending("failed", Reason.NAN_LOSS, "The loss became nan at step 3."))
    text = page.get(f"/jobs/{job}").text
    assert "nan loss" in text and "The loss became nan at step 3." in text and "Lower the learning rate" in text
    assert re.search(r'<li class="failed">.*?distill</span>', text) and 'id="do-retry"' in text


REPORT = "<!doctype html><style>p{color:red}</style><script>top.owned=1</script><p>All good.</p>"
RESULTS = {
    "metric": "accuracy",
    "recommended": "student",
    "variants": [
        {
            "name": "teacher",
            "score": {"accuracy": 90.0},
            "bytes": 90_000_000,
            "latency_ms": [{"sequence": 32, "p50": 20.0}],
        },
        {
            "name": "student",
            "score": {"accuracy": 89.0},
            "bytes": 9_000_000,
            "latency_ms": [{"sequence": 32, "p50": 2.0}],
        },
    ],
}


def test_what_a_job_made_is_offered_and_its_report_may_do_nothing(home, page, submitted):
    job = submitted()["id"]
    finished(home, page, job, files={"report.html": REPORT, "results.json": json.dumps(RESULTS)})
    text = page.get(f"/jobs/{job}").text
    digest = hashlib.sha256(REPORT.encode()).hexdigest()
    assert digest in text and "results.json" in text and f'href="/jobs/{job}/report"' in text and "Download all" in text
    place = re.search(r'href="(/v1/artifacts/[^"]*)" download><bdi>report.html', text).group(1)
    assert page.get(place).headers["content-disposition"].startswith("attachment")
    framed = page.get(f"/jobs/{job}/report")
    assert " sandbox></iframe>" in framed.text and "frame-src 'self'" in framed.headers["content-security-policy"]
    inside = page.get(f"/jobs/{job}/report/content")
    policy = inside.headers["content-security-policy"]
    assert inside.text == REPORT and policy.startswith("sandbox; default-src 'none'") and "script" not in policy
    assert page.get(f"/jobs/{submitted()['id']}/report").status_code == 404


def test_comparing_jobs(home, page, submitted):
    ids = []
    for seed in (1, 2):
        job = submitted(name=f"seed {seed}", recipe={**RECIPE, "seed": seed})["id"]
        finished(home, page, job, files={"results.json": json.dumps(RESULTS)})
        ids.append(job)
    assert all(f'value="{job}"' in page.get("/compare").text for job in ids)
    text = page.get(f"/compare?job={ids[0]}&job={ids[1]}").text
    assert text.count("<svg") == 2 and "<code>seed</code>" in text and text.count(">recommended<") == 2
    assert "A student" in text and "89.00" in text
    assert page.get("/compare?job=nothing").status_code == 404


# New jobs


@pytest.mark.parametrize("name", sorted(shipped_recipes()))
def test_the_form_says_what_the_recipe_says(name):
    text = recipe_text(shipped_recipes()[name])
    wanted = parse_recipe(text.encode(), name)
    for given in (expand(read(text)[0]), wanted.resolved()):
        form = form_from(Recipe, given)
        sent = nested((field.path, field.value) for field in form.fields())
        for made in (form, form_from(Recipe, sent, raw=True)):
            again = parse_recipe(yaml.safe_dump(short_form(recipe_of(made))).encode(), name)
            assert again.sha256() == wanted.sha256()


def test_every_setting_of_a_recipe_has_a_field():
    given = {
        "distill": {"phases": [{"losses": [{"kind": kind} for kind in ("logits", "hidden", "attention", "relation")]}]}
    }
    paths = {field.path for field in form_from(Recipe, given).fields()}
    schema = Recipe.model_json_schema()["$defs"]
    holders = {"Data": "data.", "Teacher": "teachers.0.", "Finetune": "teachers.0.finetune.", "Student": "student."}
    holders |= {"Shape": "student.config.", "Budget": "budget.", "Publish": "publish.", "Phase": "distill.phases.0."}
    holders |= {"Lora": "teachers.0.finetune.lora.", "NewModel": "teachers.0.new.", "Export": "export.0."}
    holders |= {"RelationTerm": "distill.phases.0.losses.3."}
    for model, prefix in holders.items():
        for name in schema[model]["properties"]:
            assert any(path == prefix + name or path.startswith(f"{prefix}{name}.") for path in paths), (model, name)


def test_from_a_template_to_a_job(page):
    sent = fields_of(page.get("/new?template=quickstart").text)
    job = job_of(page, page.post("/new", data=sent))
    assert job["name"] == "quickstart"
    assert job["recipe_sha256"] == parse_recipe(recipe_text(shipped_recipes()["quickstart"]).encode(), "q").sha256()
    again = job_of(page, page.post("/new", data=sent))
    assert again["id"] == job["id"], "pressed twice, it is one job"
    other = job_of(page, page.post("/new", data={**sent, "distill.phases.0.epochs": "7"}))
    assert other["id"] != job["id"] and other["recipe"]["distill"]["phases"][0]["epochs"] == 7


def test_from_a_job_to_another(page, submitted):
    first = submitted(name="first", tags=["a", "b"], resources={"processes": 2}, recipe={**RECIPE, "seed": 9})
    sent = fields_of(page.get(f"/new?job={first['id']}").text)
    second = job_of(page, page.post("/new", data=sent | {"job.tags": "c, d", "job.priority": "5"}))
    assert second["recipe_sha256"] == first["recipe_sha256"] and second["resources"]["processes"] == 2
    assert second["tags"] == ["c", "d"] and second["priority"] == 5


def test_what_is_wrong_is_said_at_its_field(page):
    sent = fields_of(page.get("/new?template=quickstart").text)
    wrong = {
        "distill.phases.0.epochs": "many",
        "student.layers": "-1",
        "job.priority": "1000",
        "distill.phases.0.losses.1.weight": "0",
    }
    answer = page.post("/new", data=sent | wrong)
    assert answer.status_code == 422
    said = page.post("/new/check", data=sent | wrong).json()
    for name, value in wrong.items():
        name_in_page = "f-" + name.replace(".", "-")
        assert said["errors"][name_in_page], name
        assert re.search(rf'id="{name_in_page}"[^>]*value="{value}"[^>]*aria-invalid="true"', answer.text), name
        assert re.search(rf'id="{name_in_page}-error">[^<]', answer.text), name
    assert not said["well"] and len(said["errors"]) == len(wrong)
    assert page.get("/v1/jobs").json()["data"] == []
    place = page.post("/new/check", data=sent | {"teachers.0.model": "/etc/passwd"}).json()
    assert "no name that is taken here" in place["errors"]["f-teachers-0-model"]
    both = page.post("/new/check", data=sent | {"student.model": "a/b"}).json()
    assert "exactly one of" in both["errors"]["g-student"]


def test_a_submission_that_finds_no_room_keeps_the_form(page):
    sent = fields_of(page.get("/new?template=quickstart").text) | {"job.name": "long thought of"}
    service = page.app.state.service
    service.limits = replace(service.limits, waiting=0)
    answer = page.post("/new", data=sent)
    assert answer.status_code == 429 and "jobs wait" in answer.text
    assert {**fields_of(answer.text), "key": ""} == {**sent, "key": ""}


def test_a_file_that_cannot_be_looked_at_again_keeps_the_form(page):
    place = page.post("/new/upload", files={"file": ("mine.csv", ROWS)}).headers["location"]
    sent = fields_of(page.get(place).text) | {"job.name": "long thought of"}
    drafts._previews.clear()
    service = page.app.state.service
    service.limits = replace(service.limits, side_process_s=0.01)
    answer = page.post("/new", data=sent)
    kept = fields_of(answer.text)
    assert answer.status_code == 422 and "was not looked at" in answer.text
    assert {name: kept[name] for name in sent if name.startswith(("column.", "job."))} == {
        name: value for name, value in sent.items() if name.startswith(("column.", "job."))
    }
    assert kept["file"] == sent["file"]


def test_the_same_from_elsewhere_is_the_same(page):
    sent = fields_of(page.get("/new?template=quickstart").text) | {"budget.size_mb": "12", "job.name": "it's mine"}
    code = page.post("/new/check", data=sent).json()["code"]
    assert len(code["yaml"].strip().split("\n")) <= 20
    wanted = parse_recipe(code["yaml"].encode(), "page").sha256()
    assert parse_recipe(code["yaml"].encode(), "page").budget.size_mb == 12
    body = json.loads(shlex.split(code["curl"])[-1])
    assert page.post("/v1/jobs", json=body).json()["recipe_sha256"] == wanted and body["name"] == "it's mine"
    recipe = ast.literal_eval(code["python"].split("job = ")[0].split("recipe = ")[1])
    assert parse_recipe(yaml.safe_dump(recipe).encode(), "page").sha256() == wanted


def test_lists_grow_and_shrink(page):
    sent = fields_of(page.get("/new?template=quickstart").text)
    sent |= {"export.1.format": "", "distill.phases.0.losses.4.kind": "relation", "do": "shape"}
    sent = fields_of(page.post("/new", data=sent).text)
    assert sent["distill.phases.0.losses.4.heads"] == "" and sent["distill.phases.0.losses.5.kind"] == ""
    recipe = job_of(page, page.post("/new", data=sent | {"do": "submit"}))["recipe"]
    assert [loss["kind"] for loss in recipe["distill"]["phases"][0]["losses"]][-1] == "relation"
    assert [export["profile"] for export in recipe["export"]] == ["fast"]
    sent |= {"export.0.format": "", "do": "submit"}
    assert job_of(page, page.post("/new", data=sent))["recipe"]["export"] == []


def test_a_named_distillation_takes_the_place_of_the_terms(page):
    sent = fields_of(page.get("/new?template=quickstart").text) | {"distill.recipe": "tinybert"}
    recipe = job_of(page, page.post("/new", data=sent))["recipe"]
    assert recipe["distill"]["recipe"] == "tinybert" and len(recipe["distill"]["phases"]) == 2


def test_yaml_of_ones_own(page):
    answer = page.post("/new/yaml", data={"yaml": yaml.safe_dump({**RECIPE, "seed": 4})})
    assert job_of(page, page.post("/new", data=fields_of(answer.text)))["recipe"]["seed"] == 4
    for text, said in (
        ("task: [", "as YAML"),
        (yaml.safe_dump({**RECIPE, "sede": 4}), "seed"),
        ("a: &a 1\nb: *a", "alias"),
    ):
        answer = page.post("/new/yaml", data={"yaml": text})
        assert answer.status_code == 422 and 'role="alert"' in answer.text and said in answer.text, answer.text


ROWS = "review,stars,<b>note</b>\n" + "".join(
    f"text {n} about things,{'good' if n % 3 else 'bad'},note {n}\n" for n in range(40)
)


def test_rows_of_ones_own(page):
    place = page.post("/new/upload", files={"file": ("mine.csv", ROWS)}).headers["location"]
    text = page.get(place).text
    assert "40 rows" in text and "text 4 about things" in text and "text 5 about things" not in text
    assert "&lt;b&gt;note&lt;/b&gt;" in text and "<b>note" not in text
    labels = re.search(r'<p class="labels">.*?</p>', text, re.DOTALL).group()
    assert re.findall(r"<bdi>(\w+)</bdi>", labels) == ["bad", "good"]
    sent = fields_of(text)
    assert sent["tasks"] == "classification" and sent["column.text"] == "review" and sent["column.label"] == "stars"
    recipe = job_of(page, page.post("/new", data=sent))["recipe"]
    assert recipe["data"]["columns"] == {"text": "review", "label": "stars"}
    assert recipe["data"]["dataset"] == place.partition("=")[2]
    changed = page.post("/new", data=sent | {"column.text": "<b>note</b>", "do": "shape"}).text
    assert fields_of(changed)["column.text"] == "&lt;b&gt;note&lt;/b&gt;" and "40 rows" in changed


def test_a_file_that_takes_long_to_look_at_can_be_learnt_from(page):
    place = page.post("/new/upload", files={"file": ("mine.csv", ROWS)}).headers["location"]
    service = page.app.state.service
    service.limits = replace(service.limits, side_process_s=0.01)
    text = page.get(place).text
    assert "was not looked at" in text
    recipe = job_of(page, page.post("/new", data=fields_of(text)))["recipe"]
    assert recipe["data"]["dataset"] == place.partition("=")[2] and recipe["data"]["columns"] == {}


def test_an_upload_that_cannot_be_used(page):
    for name, text in (("mine.exe", "a"), ("mine.csv", "")):
        answer = page.post("/new/upload", files={"file": (name, text)})
        assert answer.status_code == 422 and 'id="refused"' in answer.text, name


# System


def test_tokens_are_shown_once_and_revoked(page):
    assert "Choose at least one" in page.post("/system/tokens", data={"name": "x"}).text
    text = page.post("/system/tokens", data={"name": EVIL, "scope": ["read", "submit"], "days": "7"}).text
    token = re.search(r'id="made">([^<]*)<', text).group(1)
    assert "<img" not in text and token not in page.get("/system").text
    bearer = {"Authorization": f"Bearer {token}"}
    assert page.get("/v1/jobs", headers=bearer).status_code == 200
    place = re.search(r'action="(/system/tokens/[^"]*/revoke)"', text).group(1)
    assert page.post(place).headers["location"] == "/system"
    assert page.get("/v1/jobs", headers=bearer).status_code == 401
    own = next(row["id"] for row in page.get("/v1/tokens").json()["data"])
    assert page.post(f"/system/tokens/{own}/revoke").status_code == 409


def test_the_machine_is_described(page):
    text = page.get("/system").text
    for what in ("workers", "memory", "disk, free", "torch", "sqlalchemy"):
        assert what in text


# Try it


def test_only_what_succeeded_can_be_asked(page, submitted):
    assert "No job has succeeded" in page.get("/try").text
    job = submitted()["id"]
    answer = page.post(f"/jobs/{job}/try", data={"text": "x"})
    assert "only what succeeded can be asked" in answer.text
    assert page.post(f"/v1/jobs/{job}/predictions", json={"inputs": "x"}).status_code == 409


def test_models_that_are_not_there_are_said(home, page, submitted):
    job = submitted()["id"]
    finished(home, page, job, files={"results.json": json.dumps(RESULTS)})
    answer = page.post(f"/jobs/{job}/try", data={"text": "x"}, headers={"HX-Request": "true"})
    assert "cannot be asked" in answer.text and str(home.path) not in answer.text and "<html" not in answer.text
