"""The worker: what becomes of jobs whose attempts end in every way there is, and of workers that go."""

import contextlib
import json
import os
import signal
import sqlite3
import subprocess
import sys
import time

import pytest
from conftest import FAST, RECIPE, events_of, script_runs, until
from sqlalchemy import select

from nlp_distill.errors import DiskFull
from nlp_distill.recipe import Recipe
from nlp_distill.recipe_file import expand
from nlp_distill.service.attempt import furthest
from nlp_distill.service.intake import news
from nlp_distill.service.processes import members
from nlp_distill.service.store.queue import Policy
from nlp_distill.service.store.tables import artifacts, attempts, jobs
from nlp_distill.service.worker import WorkerSettings, remove_job

RESOLVED = Recipe.model_validate(expand(RECIPE)).resolved()
SAYS = """
import json, os, sys, time
def say(event, **fields):
    with open("{run}/events.jsonl", "a") as stream:
        stream.write(json.dumps({"time": time.time(), "event": event, **fields}) + "\\n")
"""
FAILS = """
sys.path.insert(0, "")
from nlp_distill import errors
from nlp_distill.outcome import leave_outcome
error = errors.%s
leave_outcome(error)
sys.exit(error.exit_code)
"""
WAITS = (
    SAYS
    + """
import signal
signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
say("stage", stage="distill", state="started")
print("ready", flush=True)
time.sleep(60)
"""
)


def submit(queue, **given):
    values = {"name": "", "tags": [], "priority": 0, "recipe": RESOLVED, "recipe_sha256": "0", "resources": {}}
    with queue.database.writing() as connection:
        return queue.submit(connection, **{**values, **given})


def row(queue, job_id):
    with queue.database.reading() as connection:
        return connection.execute(select(jobs).where(jobs.c.id == job_id)).first()


def endings(queue, job_id):
    with queue.database.reading() as connection:
        wanted = select(attempts).where(attempts.c.job_id == job_id).order_by(attempts.c.number)
        return [(a.ending, a.reason) for a in connection.execute(wanted)]


def work(worker):
    worker.serve(lambda: False, once=True)


def test_a_run_that_ends_well_delivers(worker_of, queue, home):
    script = (
        SAYS
        + """
say("stage", stage="teacher", state="started")
say("progress", stage="teacher", step=1, steps=2, losses={"labels": 0.5}, examples_per_s=10.0)
say("metric", stage="teacher", epoch=1, epochs=1, selection_score=90.0)
say("warning", message="look out hf_abcdefghijkl")
say("odd", value=float("nan"))
os.makedirs("{run}/model")
open("{run}/model/config.json", "w").write("{}")
open("{run}/results.json", "w").write("{}")
os.symlink("/etc/passwd", "{run}/model/stolen")
"""
    )
    job = submit(queue)
    work(worker_of(script))
    found = row(queue, job)
    assert found.status == "succeeded" and found.progress == {"stage": "teacher", "step": 1, "steps": 2}
    said = events_of(queue, job)
    assert [event["type"] for event in said] == [
        *("status", "status", "status", "stage", "progress", "metric", "warning", "log", "status")
    ] and "[secret]" in said[6]["message"]
    with queue.database.reading() as connection:
        made = connection.execute(select(artifacts.c.path).where(artifacts.c.job_id == job)).scalars().all()
    assert sorted(made) == ["model/config.json", "results.json"]


@pytest.mark.parametrize(
    ("error", "reason", "tries"),
    [
        ('DataEmpty(source="rows.csv")', "dataset_error", 1),
        ('RecipeUnreadable(source="r", reason="x")', "invalid_recipe", 1),
        ('LossNotFinite(value="nan", step=3, term="logits", examples="1")', "nan_loss", 1),
        ('OutOfMemory(stage="distill", reason="no memory")', "oom_host", 1),
        ('OutOfMemory(stage="distill", reason="CUDA out of memory")', "oom_gpu", 1),
        ('DiskFull(path="/x", reason="full")', "disk_full", 1),
        ('DiskFailed(stage="distill", reason=str(errors.DiskFull(path="/x", reason="full")))', "disk_full", 1),
        ('HubUnreachable(reference="a/b", reason="offline")', "attempts_exhausted", 3),
        ('Stalled(stage="distill", minutes=3)', "attempts_exhausted", 3),
        ('ModelUnsafe(reference="a", reason="b", fix="c")', "unsafe_model", 1),
    ],
)
def test_only_what_the_machine_did_is_tried_again(worker_of, queue, error, reason, tries):
    job, after = submit(queue, priority=1), submit(queue)
    worker, fails, works = worker_of(""), script_runs(SAYS + FAILS % error), script_runs("")
    worker.prepare = lambda home, claim, *rest: (fails if claim.job_id == job else works)(home, claim, *rest)
    until(lambda: row(queue, job).status == "failed", act=worker.tick)
    found = row(queue, job)
    assert found.reason == reason and found.detail and len(endings(queue, job)) == tries
    # The next job runs, whatever became of this one.
    until(lambda: row(queue, after).status == "succeeded", act=worker.tick)


def test_a_disk_without_room_for_a_recipe_fails_the_job_not_the_worker(worker_of, queue):
    job, after = submit(queue, priority=1), submit(queue)
    worker = worker_of("")
    works = worker.prepare

    def full(home, claim, *rest):
        if claim.job_id == job:
            raise DiskFull(path=home.jobs, reason="full")
        return works(home, claim, *rest)

    worker.prepare = full
    until(lambda: row(queue, after).status == "succeeded", act=worker.tick)
    assert (row(queue, job).status, row(queue, job).reason) == ("failed", "disk_full")


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "process_lost"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "process_lost"),
        ("import sys; sys.exit(70)", "internal"),
        ("import sys; sys.exit(75)", "process_lost"),
        ("raise SystemExit(1)", "process_lost"),
    ],
)
def test_ends_without_a_word_have_a_reason(worker_of, queue, script, reason):
    job = submit(queue)
    worker = worker_of(script)
    until(lambda: endings(queue, job)[:1] and endings(queue, job)[0][0], act=worker.tick)
    assert endings(queue, job)[0] == ("failed", reason)


def test_the_kernel_killed_it_for_memory(worker_of, queue):
    job = submit(queue)
    worker = worker_of("import os, signal; os.kill(os.getpid(), signal.SIGKILL)")
    worker.tick()
    # As if the kernel had counted one more since the attempt began.
    worker.executor._running[worker.attempts[0].handle].kills_before -= 1
    until(lambda: row(queue, job).status == "failed", act=worker.tick)
    assert endings(queue, job) == [("failed", "oom_host")]


@pytest.mark.parametrize(("what", "status"), [("cancel", "cancelled"), ("pause", "paused")])
def test_who_is_asked_stops(worker_of, queue, home, what, status):
    job = submit(queue)
    worker = worker_of(WAITS)
    until(lambda: [e for e in events_of(queue, job) if e["type"] == "stage"], act=worker.tick)
    name = worker.attempts[0].claim.attempt_id
    getattr(queue, what)(job)
    until(lambda: row(queue, job).status == status, act=worker.tick)
    assert list(members(name)) == [] and endings(queue, job) == [("stopped", None)]


def test_who_does_not_listen_is_ended(worker_of, queue):
    job = submit(queue)
    worker = worker_of(WAITS.replace("lambda *_: sys.exit(75)", "signal.SIG_IGN"))
    until(lambda: [e for e in events_of(queue, job) if e["type"] == "stage"], act=worker.tick)
    queue.cancel(job)
    until(lambda: row(queue, job).status == "cancelled", act=worker.tick)
    assert not worker.attempts


def test_a_worker_that_stops_gives_its_job_back(worker_of, queue):
    job = submit(queue)
    worker = worker_of(WAITS)
    until(lambda: [e for e in events_of(queue, job) if e["type"] == "stage"], act=worker.tick)
    worker.drain()
    found = row(queue, job)
    assert (found.status, found.failures) == ("queued", 0) and endings(queue, job) == [("stopped", None)]


def limited(**more):
    return WorkerSettings(**{**FAST.__dict__, **more})


def test_limits_of_time(worker_of, queue):
    long, late, still = submit(queue, resources={"run_s": 1}), submit(queue), submit(queue)
    script = "import time\nprint('here', flush=True)\ntime.sleep(60)"
    worker = worker_of(script, limited(slots=3, stall_s=3.0, beat_s=0.2))
    with queue.database.writing() as connection:
        connection.execute(jobs.update().where(jobs.c.id == late).values(deadline_at=int(time.time() * 1000) + 1000))
    until(lambda: row(queue, long).status == row(queue, late).status == "failed", act=worker.tick)
    assert (row(queue, long).reason, row(queue, late).reason) == ("timeout", "deadline")
    until(lambda: endings(queue, still)[0][0], act=worker.tick)
    assert endings(queue, still)[0] == ("failed", "stalled")
    # It was asked where it stands; the next attempt may have begun.
    log = "".join(file.read_text() for file in worker.home.job(still).rglob("*.log"))
    assert "Fatal Python error: Aborted" in log and "acting.py" in log
    queue.cancel(still)
    until(lambda: row(queue, still).status == "cancelled", act=worker.tick)


def dead_worker(home, script):
    """Another process that claims a job, starts it, and is killed."""
    code = f"""
import sys
sys.path.insert(0, {str(os.path.dirname(__file__))!r})
from conftest import *
home = Home({str(home.path)!r})
queue = Queue(Database(home.database).migrate(), Policy(backoff_ms=0))
worker = Worker(home, queue, LocalExecutor(), FAST)
worker.prepare = script_runs({script!r})
worker.serve(lambda: False)
"""
    return subprocess.Popen([sys.executable, "-c", code])


def test_a_killed_workers_job_goes_on_with_the_next_and_nothing_is_left(worker_of, queue, home):
    job = submit(queue)
    first = dead_worker(home, WAITS)
    until(lambda: [e for e in events_of(queue, job) if e["type"] == "stage"])
    name = row(queue, job).attempt_id
    assert len(list(members(name))) == 1
    first.kill()
    first.wait()
    until(lambda: not list(members(name)), 5)
    worker = worker_of("")
    worker._sign_in()
    until(lambda: row(queue, job).status == "succeeded", act=worker.tick)
    assert endings(queue, job) == [("failed", "worker_lost"), ("ok", None)]


def stop_between_transactions(process, queue):
    """Who is stopped while it writes holds SQLite's lock, and nobody writes until it goes on."""
    while True:
        process.send_signal(signal.SIGSTOP)
        with contextlib.closing(sqlite3.connect(queue.database.path, timeout=0.2)) as connection:
            try:
                connection.execute("BEGIN IMMEDIATE")
                return
            except sqlite3.OperationalError:
                process.send_signal(signal.SIGCONT)
                time.sleep(0.05)


def test_a_worker_that_slept_through_its_lease_is_fenced(worker_of, queue, home):
    job = submit(queue)
    first = dead_worker(home, WAITS)
    until(lambda: [e for e in events_of(queue, job) if e["type"] == "stage"])
    name = row(queue, job).attempt_id
    stop_between_transactions(first, queue)
    worker = worker_of(WAITS)
    worker._sign_in()
    until(lambda: (found := row(queue, job)).status == "running" and found.attempt_id != name, act=worker.tick)
    # Its processes are gone before the new ones begin.
    assert not list(members(name))
    first.send_signal(signal.SIGCONT)
    time.sleep(1)
    worker.tick()
    assert len(list(members(row(queue, job).attempt_id))) == 1
    first.terminate()
    assert first.wait(30) == -signal.SIGTERM
    worker.drain()
    assert endings(queue, job) == [("failed", "worker_lost"), ("stopped", None)]


def test_a_slow_worker_keeps_its_job_while_it_beats(worker_of, queue):
    job = submit(queue)
    worker, other = worker_of(WAITS), worker_of("")
    until(lambda: [e for e in events_of(queue, job) if e["type"] == "stage"], act=worker.tick)
    end = time.monotonic() + 2.5 * FAST.lease_s
    while time.monotonic() < end:
        worker.tick()
        other.tick()
    assert row(queue, job).status == "running" and len(endings(queue, job)) == 1
    worker.drain()


def test_what_a_run_said_is_taken_in_once_over_several_attempts(worker_of, queue):
    job = submit(queue)
    script = (
        SAYS
        + """
lines = len(open("{run}/events.jsonl").readlines()) if os.path.exists("{run}/events.jsonl") else 0
for n in range(lines, lines + 20):
    say("note", message=f"line {n}")
if lines < 40:
    # Killed in the middle of a line, which the next attempt drops.
    os.kill(os.getpid(), 9)
"""
    )
    work(
        worker_of(
            script,
            limited(),
        )
    )
    lines = [event["message"] for event in events_of(queue, job) if event["type"] == "log"]
    assert lines == [f"line {n}" for n in range(60)] and row(queue, job).status == "succeeded"


def test_half_a_line_is_not_read(tmp_path):
    file = tmp_path / "events.jsonl"
    line = json.dumps({"time": 1.5, "event": "note", "message": "a"}) + "\n"
    file.write_text(line + line[:10])
    first = news(file, 0)
    assert len(first.events) == 1 and first.consumed == len(line)
    assert news(file, first.consumed).events == []
    file.write_text(line + line + "no json\n")
    second = news(file, first.consumed)
    assert [event.type for event in second.events] == ["log", "warning"]


def test_how_far_a_run_came(tmp_path):
    assert furthest(tmp_path) == "00:000000000000"
    (tmp_path / "checkpoints" / "distill" / "phase-0-abc" / "step-00000012").mkdir(parents=True)
    stages = {"teacher": {"outputs": {}, "seconds": 1}, "distill": {"settings": {}}}
    (tmp_path / "manifest.json").write_text(json.dumps({"stages": stages}))
    assert furthest(tmp_path) == "01:000000000012" > "00:999999999999"


def test_old_jobs_are_removed(worker_of, queue, home):
    job = submit(queue)
    worker = worker_of("", limited(retention_days=1))
    until(lambda: row(queue, job).status == "succeeded", act=worker.tick)
    with queue.database.writing() as connection:
        connection.execute(jobs.update().values(finished_at=0))
    until(lambda: row(queue, job) is None, act=worker.tick)
    assert not home.job(job).exists()
    with pytest.raises(LookupError):
        remove_job(home, queue, job)


def test_an_upload_that_is_gone_ends_the_job(worker_of, queue):
    recipe = {**RESOLVED, "data": {**RESOLVED["data"], "dataset": "file_" + "0" * 32}}
    job = submit(queue, recipe=recipe)
    worker = worker_of("")
    until(lambda: row(queue, job).status == "failed", act=worker.tick)
    assert "no file" in row(queue, job).detail


def test_the_policy_waits_longer_each_time():
    policy = Policy(backoff_ms=1000)
    assert 800 <= policy.wait_ms(1, None) <= 1200 and 7200 <= policy.wait_ms(3, None) <= 10_800
