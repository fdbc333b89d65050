"""Parts of torture_service.py: jobs that are cancelled, and jobs whose machine or whose numbers give out."""

from __future__ import annotations

import contextlib
import copy
import random
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from sqlalchemy import select
from trainings import queue_of, submit_trainings, training, weights

from nlp_distill.service.executors.local import LocalExecutor
from nlp_distill.service.home import Home
from nlp_distill.service.processes import members
from nlp_distill.service.store.queue import TERMINAL, Queue
from nlp_distill.service.store.tables import attempts, jobs
from nlp_distill.service.worker import Worker, WorkerSettings

MEMORY = Path("/sys/fs/cgroup/memory/nlp-distill-torture")
LEAST_BYTES = 128 << 20
"""Less than importing torch takes."""


def state(queue: Queue, job_id: str) -> tuple[str, str | None, str | None]:
    """Status, reason and attempt of a job."""
    with queue.database.reading() as connection:
        row = connection.execute(select(jobs).where(jobs.c.id == job_id)).one()
    return row.status, row.reason, row.attempt_id


def until(worker: Worker, condition: Callable[[], Any], seconds: float = 900) -> None:
    """Let a worker work until something is so."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        worker.tick()
        time.sleep(worker.settings.tick_s)


def over(queue: Queue, job_id: str) -> bool:
    """Whether a job is over."""
    return state(queue, job_id)[0] in TERMINAL


def torture_cancel(home: Home, count: int, chance: random.Random) -> dict[str, Any]:
    """Trainings are cancelled at a random moment after their first sign of life."""
    queue, recipe = queue_of(home), training(home.path.parent / "world")
    recipe["distill"]["phases"][0]["epochs"] = 500
    worker = Worker(home, queue, LocalExecutor(), WorkerSettings(niceness=0))
    took, left = [], 0
    for _ in range(count):
        job = submit_trainings(queue, recipe, 1)[0]
        until(worker, lambda: (home.run(job) / "events.jsonl").is_file())  # noqa: B023
        moment = time.monotonic() + chance.uniform(0.0, 8.0)
        until(worker, lambda: time.monotonic() > moment)  # noqa: B023
        queue.cancel(job)
        began = time.monotonic()
        until(worker, lambda: over(queue, job))  # noqa: B023
        took.append(time.monotonic() - began)
        left += sum(1 for _ in members(state(queue, job)[2] or ""))
    took.sort()
    p95 = took[min(len(took) - 1, int(0.95 * len(took)))]
    return {
        "jobs": count,
        "cancelled_s": {"median": round(took[len(took) // 2], 2), "p95": round(p95, 2), "most": round(took[-1], 2)},
        "left_behind": left,
        "ok": p95 <= 5 and not left,
    }


@contextlib.contextmanager
def small_disk(folder: Path) -> Iterator[Path]:
    """A disk of 64 MB in memory."""
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(folder)], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(folder: Path) -> Path:
    """Leave no byte."""
    file = folder / "filler"
    with contextlib.suppress(OSError), file.open("wb", buffering=0) as stream:
        while True:
            stream.write(bytes(4096))
    return file


def full_disk(home: Home) -> dict[str, Any]:
    """The disk fills up behind the first checkpoint; with space again, `retry` ends with the weights of another run."""
    queue, recipe = queue_of(home), training(home.path.parent / "world")
    worker = Worker(home, queue, LocalExecutor(), WorkerSettings(niceness=0))
    with small_disk(home.jobs):
        job = submit_trainings(queue, recipe, 1)[0]
        until(worker, lambda: list(home.run(job).glob("checkpoints/**/step-*")))
        filler = fill(home.jobs)
        until(worker, lambda: over(queue, job))
        reason = state(queue, job)[1]
        filler.unlink()
        following = submit_trainings(queue, recipe, 1)[0]
        until(worker, lambda: over(queue, following))
        queue.retry(job)
        until(worker, lambda: over(queue, job))
        same = weights(home.run(job)) == weights(home.run(following)) != {}
        found = {"reason": reason, "next": state(queue, following)[0], "retried": state(queue, job)[0], "same": same}
    return found | {"ok": [*found.values()] == ["disk_full", "succeeded", "succeeded", True]}


def no_number(home: Home) -> dict[str, Any]:
    """A learning rate that no training survives."""
    queue, recipe = queue_of(home), training(home.path.parent / "world")
    wild = copy.deepcopy(recipe)
    phase = wild["distill"]["phases"][0]
    phase |= {"learning_rate": 1.0, "max_grad_norm": 1e30}
    phase["losses"][2]["weight"] = 1e38
    worker = Worker(home, queue, LocalExecutor(), WorkerSettings(niceness=0))
    bad, following = submit_trainings(queue, wild, 1)[0], submit_trainings(queue, recipe, 1)[0]
    until(worker, lambda: over(queue, bad) and over(queue, following))
    found = {"reason": state(queue, bad)[1], "next": state(queue, following)[0]}
    return found | {"ok": [*found.values()] == ["nan_loss", "succeeded"]}


def no_memory(home: Home) -> dict[str, Any]:
    """The kernel kills the attempt in a control group of its own."""
    queue, recipe = queue_of(home), training(home.path.parent / "world")
    worker = Worker(home, queue, LocalExecutor(), WorkerSettings(niceness=0))
    MEMORY.mkdir(exist_ok=True)
    (MEMORY / "memory.limit_in_bytes").write_text(str(LEAST_BYTES))
    bad = submit_trainings(queue, recipe, 1)[0]
    worker.tick()
    for pid in members(worker.attempts[0].claim.attempt_id):
        (MEMORY / "cgroup.procs").write_text(str(pid))
    until(worker, lambda: over(queue, bad))
    following = submit_trainings(queue, recipe, 1)[0]
    until(worker, lambda: over(queue, following))
    with queue.database.reading() as connection:
        tried = len(connection.execute(select(attempts.c.id).where(attempts.c.job_id == bad)).all())
    MEMORY.rmdir()
    found = {"reason": state(queue, bad)[1], "attempts": tried, "next": state(queue, following)[0]}
    return found | {"ok": [*found.values()] == ["oom_host", 1, "succeeded"]}


def torture_endings(home: Home) -> dict[str, Any]:
    """Each on its own; root is needed for the small disk and the small memory."""
    found: dict[str, Any] = {}
    for part in (no_number, full_disk, no_memory):
        found[part.__name__] = part(Home(home.path.parent / part.__name__ / "home").make())
    return found | {"ok": all(part["ok"] for part in found.values())}
