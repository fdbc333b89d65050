"""The HTTP API: what it takes, what it answers, what it refuses."""

import asyncio
import hashlib
import io
import json
import threading
import time
import zipfile

import pytest
import torch
import yaml
from conftest import RECIPE, TestClient

from nlp_distill.checkpoint import Checkpoint, CheckpointFolder
from nlp_distill.service.api.app import service_app
from nlp_distill.service.api.events import _first
from nlp_distill.service.api.feed import Feed
from nlp_distill.service.api.service import Limits
from nlp_distill.service.attempt import artifacts
from nlp_distill.service.page.sessions import LATELY_S
from nlp_distill.service.reasons import Ending, Reason
from nlp_distill.service.store import journal, tokens
from nlp_distill.service.store.journal import Event, Point
from nlp_distill.service.store.queue import Queue

MEDIA = "application/problem+json"


def is_problem(answer, status, code):
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == MEDIA
    document = answer.json()
    assert document["code"] == code and document["request_id"]
    return document


def finished(home, api, job_id, ending=None, files=()):
    """Let the queue end a job that is next, with files in its run."""
    queue = Queue(api.app.state.service.database)
    claim = queue.claim("worker")
    assert claim.job_id == job_id
    run = home.run(job_id)
    for name, text in dict(files).items():
        (run / name).parent.mkdir(parents=True, exist_ok=True)
        (run / name).write_text(text)
    queue.finish(claim, ending or Ending("ok"), "", artifacts(run) if files else [])
    return claim


def test_a_job_is_submitted_shown_and_listed(api, submitted):
    job = submitted(name="first", tags=["a", "b"], priority=3, deadline_s=60, resources={"processes": 2})
    assert (
        job["status"] == "queued" and job["recipe"]["data"]["dataset"] == "sample:sst2" and job["duplicate_of"] is None
    )
    assert job["deadline_at"] == pytest.approx(job["created_at"] + 60, abs=2)
    shown = api.get(f"/v1/jobs/{job['id']}")
    assert shown.json() == {**job, "duplicate_of": None} and shown.headers["etag"] == '"1"'
    second = submitted(tags=["b"])
    assert second["duplicate_of"] == job["id"]
    assert [j["id"] for j in api.get("/v1/jobs").json()["data"]] == [second["id"], job["id"]]
    assert [j["id"] for j in api.get("/v1/jobs?tag=a").json()["data"]] == [job["id"]]
    assert api.get("/v1/jobs?status=running&status=failed").json()["data"] == []


def test_pages_give_each_job_once(api, submitted):
    names = [submitted()["id"] for _ in range(7)]
    seen, after = [], ""
    while True:
        page = api.get(f"/v1/jobs?limit=3{after}").json()
        seen += [job["id"] for job in page["data"]]
        if not page["has_more"]:
            break
        after = f"&after={page['next']}"
    assert sorted(seen) == sorted(names) and len(seen) == 7


def test_a_recipe_may_be_yaml(api):
    answer = api.post("/v1/jobs", json={"recipe": yaml.safe_dump(RECIPE)})
    assert answer.status_code == 201 and answer.headers["location"] == f"/v1/jobs/{answer.json()['id']}"


def test_every_problem_of_a_recipe_at_once(api):
    wrong = {**RECIPE, "studnet": {}, "distill": {"epochs": 0}, "task": "classification"}
    for path in ("/v1/recipes:validate", "/v1/jobs"):
        document = is_problem(api.post(path, json={"recipe": wrong}), 422, "invalid_recipe")
        said = {place["pointer"]: place["message"] for place in document["errors"]}
        assert "did you mean 'student'" in said["/recipe/studnet"] and "/recipe/distill/epochs" in said


def test_a_valid_recipe_is_resolved(api):
    answer = api.post("/v1/recipes:validate", json={"recipe": RECIPE}).json()
    assert (
        answer["recipe"]["distill"]["phases"][0]["epochs"] == 4 and yaml.safe_load(answer["yaml"]) == answer["recipe"]
    )
    assert answer["recipe_sha256"] == api.post("/v1/jobs", json={"recipe": answer["recipe"]}).json()["recipe_sha256"]


def test_the_same_key_makes_one_job(api):
    sent = {"json": {"recipe": RECIPE, "name": "once"}, "headers": {"Idempotency-Key": "k1"}}
    first, again = api.post("/v1/jobs", **sent), api.post("/v1/jobs", **sent)
    assert first.status_code == again.status_code == 201 and first.json()["id"] == again.json()["id"]
    other = {"json": {"recipe": RECIPE, "name": "other"}, "headers": {"Idempotency-Key": "k1"}}
    is_problem(api.post("/v1/jobs", **other), 422, "key_reused")
    answers = []
    threads = [
        threading.Thread(
            target=lambda: answers.append(
                api.post("/v1/jobs", json={"recipe": RECIPE}, headers={"Idempotency-Key": "k2"}).json()["id"]
            )
        )
        for _ in range(5)
    ]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert len(set(answers)) == 1 and len(answers) == 5


def test_what_is_asked_of_a_job(home, api, submitted):
    job = submitted()
    path = f"/v1/jobs/{job['id']}"
    for what, status in [("pause", "paused"), ("pause", "paused"), ("resume", "queued"), ("cancel", "cancelled")]:
        assert api.post(f"{path}/{what}").json()["status"] == status
    is_problem(api.post(f"{path}/pause"), 409, "wrong_status")
    assert api.post(f"{path}/retry").json()["status"] == "queued"
    is_problem(api.delete(path), 409, "wrong_status")
    finished(home, api, job["id"], Ending("failed", Reason.DISK_FULL, "no space"))
    error = api.get(path).json()["error"]
    assert error["code"] == "disk_full" and "Free some space" in error["fix"]
    clone = api.post(f"{path}/clone")
    assert clone.status_code == 201 and clone.json()["parent_id"] == job["id"]
    assert api.delete(path).status_code == 204
    is_problem(api.get(path), 404, "not_found")
    assert not home.job(job["id"]).exists()


def test_changes_meet_no_faster_hand(api, submitted):
    job = submitted()
    path = f"/v1/jobs/{job['id']}"
    changed = api.patch(path, json={"name": "new", "priority": 7}, headers={"If-Match": '"1"'})
    assert (changed.json()["name"], changed.json()["priority"], changed.headers["etag"]) == ("new", 7, '"2"')
    is_problem(api.patch(path, json={"name": "late"}, headers={"If-Match": '"1"'}), 412, "changed_meanwhile")


def test_the_queue_has_an_end(home):
    with TestClient(service_app(home, Limits(waiting=1)), base_url="http://localhost") as client:
        client.headers["Authorization"] = f"Bearer {home.admin_token()}"
        assert client.post("/v1/jobs", json={"recipe": RECIPE}).status_code == 201
        answer = client.post("/v1/jobs", json={"recipe": RECIPE})
        assert is_problem(answer, 429, "queue_full") and answer.headers["retry-after"]


def test_a_full_disk_takes_no_job(home):
    with TestClient(service_app(home, Limits(free_disk=1 << 60)), base_url="http://localhost") as client:
        client.headers["Authorization"] = f"Bearer {home.admin_token()}"
        is_problem(client.post("/v1/jobs", json={"recipe": RECIPE}), 503, "unavailable")
        is_problem(client.post("/v1/files?name=a.csv", content=b"a"), 503, "unavailable")


ROWS = b"text,label\n" + b"".join(f"a good film {n},{n % 2}\n".encode() for n in range(20))


def test_files_are_uploaded_previewed_named_and_removed(home, api):
    answer = api.post("/v1/files?name=../../my%20rows.csv", content=ROWS)
    file = answer.json()
    assert answer.status_code == 201 and file["name"] == "my rows.csv" and file["format"] == "csv"
    assert file["sha256"] == hashlib.sha256(ROWS).hexdigest() and file["bytes"] == len(ROWS)
    assert home.file(file["id"], "csv").read_bytes() == ROWS
    form = api.post("/v1/files", files={"file": ("b.tsv", b"text\tlabel\n", "text/plain")})
    assert form.status_code == 201 and form.json()["name"] == "b.tsv"
    assert [f["id"] for f in api.get("/v1/files").json()["data"]] == [form.json()["id"], file["id"]]
    looked = api.get(f"/v1/files/{file['id']}/preview")
    assert looked.status_code == 200, looked.text
    preview = looked.json()
    assert preview["columns"] == ["text", "label"] and preview["count"] == 20 and len(preview["rows"]) == 5
    assert preview["guessed"]["classification"] == {"text": "text", "label": "label"}
    job = api.post("/v1/jobs", json={"recipe": {**RECIPE, "data": {"dataset": file["id"]}}})
    assert job.status_code == 201, job.text
    is_problem(api.delete(f"/v1/files/{file['id']}"), 409, "file_in_use")
    api.post(f"/v1/jobs/{job.json()['id']}/cancel")
    assert api.delete(f"/v1/files/{file['id']}").status_code == 204
    assert not home.file(file["id"], "csv").exists()
    is_problem(api.get(f"/v1/files/{file['id']}"), 404, "not_found")
    gone = api.post("/v1/jobs", json={"recipe": {**RECIPE, "data": {"dataset": file["id"]}}})
    assert is_problem(gone, 422, "invalid_recipe")["errors"][0]["pointer"] == "/recipe/data/dataset"


@pytest.mark.parametrize(
    ("query", "content", "status", "code"),
    [
        ("name=a.zip", b"PK", 415, "format_unknown"),
        ("name=csv", b"a", 415, "format_unknown"),
        ("", b"a", 415, "format_unknown"),
        ("name=a.csv", b"", 422, "empty_file"),
        ("name=a.csv&sha256=" + "0" * 64, b"a", 422, "digest_differs"),
    ],
)
def test_uploads_that_are_refused_leave_nothing(home, api, query, content, status, code):
    is_problem(api.post(f"/v1/files?{query}", content=content), status, code)
    assert list(home.files.iterdir()) == [] and api.get("/v1/files").json()["data"] == []


def test_an_upload_that_cannot_be_read_is_said(api):
    file = api.post("/v1/files?name=a.parquet", content=b"no parquet").json()
    document = is_problem(api.get(f"/v1/files/{file['id']}/preview"), 422, "invalid_recipe")
    assert "Parquet" in document["detail"] and "/files/" not in document["detail"]


def test_an_upload_has_a_largest_size(home):
    with TestClient(service_app(home, Limits(file=1000)), base_url="http://localhost") as client:
        client.headers["Authorization"] = f"Bearer {home.admin_token()}"
        is_problem(client.post("/v1/files?name=a.csv", content=b"x" * 1001), 413, "body_too_large")
        assert list(home.files.iterdir()) == []


def test_events_come_in_order_and_in_parts(home, api, submitted):
    job = submitted()
    queue = Queue(api.app.state.service.database)
    claim = queue.claim("worker")
    queue.take_in(claim, [Event("log", f"line {n}") for n in range(500)], [], 0, None)
    path = f"/v1/jobs/{job['id']}/events"
    first = api.get(f"{path}?limit=400").json()
    rest = api.get(f"{path}?after={first['data'][-1]['seq']}&limit=400").json()
    assert first["has_more"] and not rest["has_more"]
    assert [e["seq"] for e in [*first["data"], *rest["data"]]] == list(range(1, 503))


def read_stream(client, path, **headers):
    """Numbers and kinds of a stream that ends."""
    with client.stream("GET", path, headers={"Accept": "text/event-stream", **headers}) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        text = "".join(answer.iter_text())
    blocks = [dict(line.split(": ", 1) for line in block.split("\n") if ": " in line) for block in text.split("\n\n")]
    return [(int(b["id"]), b["event"], json.loads(b["data"])) for b in blocks if "id" in b], text


def test_a_stream_goes_on_behind_the_last_event_and_ends_with_its_job(home, api, submitted):
    job = submitted()
    queue = Queue(api.app.state.service.database)
    claim = queue.claim("worker")
    queue.take_in(claim, [Event("log", "two\nlines\r\n\n")] * 299, [], 0, None)
    queue.take_in(claim, [Event("log", "what \u2028others\x85 take for lines")], [], 0, None)
    queue.finish(claim, Ending("ok"))
    path = f"/v1/jobs/{job['id']}/events"
    seen, text = read_stream(api, path)
    assert [number for number, _, _ in seen] == list(range(1, 304)) and "event: end" in text
    assert seen[301][2]["message"] == "what \u2028others\x85 take for lines" and text.isascii()
    assert seen[2][2]["message"] == "two\nlines\r\n\n" and seen[-1][2]["data"]["status"] == "succeeded"
    seen, _ = read_stream(api, path, **{"Last-Event-ID": "301"})
    assert [number for number, _, _ in seen] == [302, 303]
    assert read_stream(api, f"{path}?after=303")[0] == []
    assert read_stream(api, path, **{"Last-Event-ID": "no number"})[0][0][0] == 1


def test_streams_of_a_job_share_a_look_and_none_misses_what_came_after_it(queue, api, submitted, monkeypatch):
    job, feed, looks = submitted()["id"], Feed(queue.database), []
    monkeypatch.setattr(journal, "read", lambda *asked, read=journal.read: looks.append(asked) or read(*asked))

    async def listeners():
        looking = asyncio.create_task(feed.run())
        async with feed.listen(job) as bell:
            before = await asyncio.gather(*(feed.news(job, 0) for _ in range(20)))
            bell.clear()
            queue.finish(queue.claim("worker"), Ending("ok"))
            await asyncio.wait_for(bell.wait(), 30)
            after = await asyncio.gather(*(feed.news(job, 1) for _ in range(20)))
        looking.cancel()
        return before, after

    before, after = asyncio.run(listeners())
    assert [[row["seq"] for row in rows] for rows, _ in before] == [[1]] * 20
    assert [([row["seq"] for row in rows], status) for rows, status in after] == [([2, 3], "succeeded")] * 20
    assert len(looks) == 2


def test_curves(api, submitted):
    job = submitted()
    queue = Queue(api.app.state.service.database)
    claim = queue.claim("worker")
    points = [Point("distill.loss.logits", step, 1 / (step + 1), 0) for step in range(5000)]
    queue.take_in(claim, [], [*points, Point("speed", 1, 2.0, 0), Point("nan", 1, float("nan"), 0)], 0, None)
    found = api.get(f"/v1/jobs/{job['id']}/metrics?max_points=100").json()
    assert found["names"] == ["distill.loss.logits", "speed"]
    assert len(found["data"][0]["steps"]) <= 100 and found["data"][0]["values"][0] == 1.0
    only = api.get(f"/v1/jobs/{job['id']}/metrics?names=speed").json()
    assert [curve["name"] for curve in only["data"]] == ["speed"]


def test_a_log_that_grows_while_it_is_sent_comes_as_long_as_was_announced(tmp_path):
    """Or the connection breaks: the server holds to the length that it has told."""
    (tmp_path / "log").write_bytes(b"a" * 100_000)
    parts = _first(tmp_path / "log", 100_000)
    sent = [next(parts)]
    with (tmp_path / "log").open("ab") as stream:
        stream.write(b"b" * 100_000)
    assert b"".join([*sent, *parts]) == b"a" * 100_000


def test_logs_by_part(home, api, submitted):
    job = submitted()
    path = f"/v1/jobs/{job['id']}/logs"
    assert api.get(path).text == ""
    claim = finished(home, api, job["id"])
    log = home.log(job["id"], claim.attempt_id)
    log.parent.mkdir(parents=True)
    log.write_text("0123456789")
    assert api.get(path).text == "0123456789" == api.get(f"{path}?follow=true").text
    part = api.get(path, headers={"Range": "bytes=2-4"})
    assert (part.status_code, part.text) == (206, "234")
    assert api.get(path, headers={"Range": "bytes=90-"}).status_code == 416
    assert api.get(f"{path}?attempt={claim.attempt_id}").text == "0123456789"
    is_problem(api.get(f"{path}?attempt=attempt_{'0' * 32}"), 404, "not_found")
    attempts = api.get(f"/v1/jobs/{job['id']}/attempts").json()["data"]
    assert [(a["id"], a["number"], a["ending"]) for a in attempts] == [(claim.attempt_id, 1, "ok")]


FILES = {"model/config.json": "{}", "model/onnx/model.onnx": "weights" * 1000, "recipe.yaml": "task: x\n"}


def test_artifacts_are_fetched_by_id_with_sums_and_parts(home, api, submitted):
    job = submitted()
    finished(home, api, job["id"], files=FILES)
    listed = api.get(f"/v1/jobs/{job['id']}/artifacts").json()["data"]
    assert [a["path"] for a in listed] == sorted(FILES)
    onnx = next(a for a in listed if a["path"].endswith(".onnx"))
    path = f"/v1/artifacts/{onnx['id']}/content"
    whole = api.get(path)
    assert whole.text == FILES["model/onnx/model.onnx"] and whole.headers["etag"] == f'"{onnx["sha256"]}"'
    assert whole.headers["content-disposition"].startswith("attachment") and whole.headers["x-content-type-options"]
    part = api.get(path, headers={"Range": "bytes=7-13", "If-Range": f'"{onnx["sha256"]}"'})
    assert (part.status_code, part.text) == (206, "weights")
    assert api.get(path, headers={"If-None-Match": f'"{onnx["sha256"]}"'}).status_code == 304
    archive = zipfile.ZipFile(io.BytesIO(api.get(f"/v1/jobs/{job['id']}/bundle").content))
    assert {name: archive.read(name).decode() for name in archive.namelist()} == FILES


def test_checkpoints_are_listed_as_they_lie_there(home, api, submitted):
    job = submitted()
    place = f"/v1/jobs/{job['id']}/checkpoints"
    assert api.get(place).json()["data"] == []
    folder = CheckpointFolder(home.run(job["id"]) / "checkpoints" / "distill" / "phase-1", "key")
    for step in (3, 7):
        folder.save(Checkpoint({"step": step}, {"w": torch.zeros(4)}, {"m": torch.zeros(4)}, {"w": torch.zeros(4)}))
    first, second = api.get(place).json()["data"]
    assert (first["stage"], first["step"], second["step"]) == ("distill/phase-1", 3, 7)
    assert first["state"] == second["state"] == "complete"
    files = folder.path / "step-00000007"
    assert second["bytes"] == sum(file.stat().st_size for file in files.iterdir())
    assert second["sha256"] == json.loads((files / "manifest.json").read_text())
    (files / "weights.safetensors").unlink()
    (folder.path / "step-00000003").rename(folder.path / "damaged-step-00000003")
    (folder.path / ".step-00000009.1.tmp").mkdir()
    assert [found["state"] for found in api.get(place).json()["data"]] == ["damaged", "damaged"]
    assert api.get(place.replace(job["id"], "job_" + "0" * 32)).status_code == 404


def test_a_failed_job_delivers_nothing(home, api, submitted):
    job = submitted()
    finished(home, api, job["id"], Ending("failed", Reason.NAN_LOSS, "nan"), FILES)
    assert api.get(f"/v1/jobs/{job['id']}/artifacts").json()["data"] == []
    is_problem(api.get(f"/v1/jobs/{job['id']}/bundle"), 404, "nothing_delivered")


def results(name, score, size, latency, real=32):
    """Timed at the length of its rows, at 32 and at 128 tokens, each as slow as it is long."""
    ways = [{"sequence": tokens, "p50": latency * tokens / 32} for tokens in sorted({real, 32, 128})]
    variant = {"name": name, "score": {"accuracy": score}, "bytes": size, "latency_ms": ways}
    return json.dumps({"metric": "accuracy", "recommended": name, "real_sequence": real, "variants": [variant]})


def test_jobs_are_compared(home, api, submitted):
    good = submitted(name="good")
    finished(home, api, good["id"], files={"results.json": results("student", 90.0, 100, 1.0)})
    recipe = {**RECIPE, "student": {"layers": 2}}
    bad = api.post("/v1/jobs", json={"recipe": recipe}).json()
    finished(home, api, bad["id"], files={"results.json": results("student", 80.0, 100, 1.0)})
    found = api.post("/v1/compare", json={"jobs": [good["id"], bad["id"]]}).json()
    assert [(v["job_name"], v["score"], v["pareto"]) for v in found["variants"]] == [
        ("good", 90.0, True),
        ("", 80.0, False),
    ]
    assert found["differences"] == {"student.layers": {good["id"]: 3, bad["id"]: 2}}
    assert found["sequence"] == 32


def test_latencies_are_compared_at_a_length_that_all_have(home, api, submitted):
    first, second = submitted(), submitted()
    finished(home, api, first["id"], files={"results.json": results("student", 90.0, 100, 1.0, real=18)})
    finished(home, api, second["id"], files={"results.json": results("student", 90.0, 100, 1.5, real=40)})
    both = api.post("/v1/compare", json={"jobs": [first["id"], second["id"]]}).json()
    assert both["sequence"] == 128 and [v["latency_ms"] for v in both["variants"]] == [4.0, 6.0]
    alone = api.post("/v1/compare", json={"jobs": [second["id"]]}).json()
    assert alone["sequence"] == 40 and alone["variants"][0]["latency_ms"] == 1.875


def test_health_system_figures_and_templates(api, submitted):
    assert api.get("/health/live").json() == {"status": "ok"}
    is_problem(api.get("/health/ready"), 503, "no_worker")
    submitted()
    system = api.get("/v1/system").json()
    assert system["jobs"]["queued"] == 1 and system["disk_free_bytes"] > 0 and system["versions"]["torch"]
    figures = api.get("/metrics").text
    assert (
        'nlpd_jobs{status="queued"} 1.0' in figures and 'nlpd_requests_total{method="POST",status="201"} 1.0' in figures
    )
    templates = api.get("/v1/templates").json()["data"]
    assert "quickstart" in [template["name"] for template in templates]
    for template in templates:
        assert api.post("/v1/recipes:validate", json={"recipe": template["yaml"]}).status_code == 200, template["name"]
    assert "distill" in api.get("/v1/recipes/schema").json()["properties"]


def test_tokens_have_scopes_and_are_shown_once(api, submitted):
    job = submitted()
    made = api.post("/v1/tokens", json={"name": "reader", "scopes": ["read"]}).json()
    reader = {"Authorization": f"Bearer {made['token']}"}
    assert api.get(f"/v1/jobs/{job['id']}", headers=reader).status_code == 200
    for method, path, body in [
        ("POST", "/v1/jobs", {"recipe": RECIPE}),
        ("POST", f"/v1/jobs/{job['id']}/cancel", None),
        ("DELETE", f"/v1/jobs/{job['id']}", None),
        ("GET", "/v1/tokens", None),
    ]:
        is_problem(api.request(method, path, json=body, headers=reader), 403, "scope_missing")
    listed = api.get("/v1/tokens").json()["data"]
    assert [t["name"] for t in listed] == ["reader", "admin"] and all(t["token"] is None for t in listed)
    is_problem(api.delete(f"/v1/tokens/{listed[1]['id']}"), 409, "own_token")
    assert api.delete(f"/v1/tokens/{made['id']}").status_code == 204
    is_problem(api.get("/v1/jobs", headers=reader), 401, "token_needed")


def test_a_token_expires(api, monkeypatch):
    made = api.post("/v1/tokens", json={"scopes": ["read"], "expires_s": 60}).json()
    reader = {"Authorization": f"Bearer {made['token']}"}
    assert api.get("/v1/jobs", headers=reader).status_code == 200
    monkeypatch.setattr("nlp_distill.service.store.tokens.now_ms", lambda: int(made["expires_at"] * 1000))
    time.sleep(LATELY_S)
    is_problem(api.get("/v1/jobs", headers=reader), 401, "token_needed")


def test_an_owners_token_that_was_replaced_lets_nobody_in(home):
    def status(token):
        with TestClient(service_app(home), base_url="http://127.0.0.1") as client:
            return client.get("/v1/jobs", headers={"Authorization": f"Bearer {token}"}).status_code

    first = home.admin_token()
    with TestClient(service_app(home), base_url="http://127.0.0.1") as client:
        owner = {"Authorization": f"Bearer {first}"}
        made = client.post("/v1/tokens", json={"name": "admin", "scopes": ["read"]}, headers=owner).json()["token"]
    for other in ("another-token-of-the-owner", first):
        before = home.admin_token()
        home.token.write_text(other)
        assert [status(token) for token in (other, before, made)] == [200, 401, 200]


def test_a_token_that_another_process_revokes_is_good_for_a_second_at_most(api, queue):
    made = api.post("/v1/tokens", json={"scopes": ["read"]}).json()
    reader = {"Authorization": f"Bearer {made['token']}"}
    assert api.get("/v1/jobs", headers=reader).status_code == 200
    with queue.database.writing() as connection:
        assert tokens.revoke(connection, made["id"])
    time.sleep(LATELY_S)
    is_problem(api.get("/v1/jobs", headers=reader), 401, "token_needed")
