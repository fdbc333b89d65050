"""One attempt of a job, from its first process to its ending."""

from __future__ import annotations

import json
import signal
import time
from dataclasses import dataclass, field
from pathlib import Path

from nlp_distill.outcome import read_outcome
from nlp_distill.rundir import sha256_file
from nlp_distill.service.executors.contract import Executor, Spec, State
from nlp_distill.service.home import Home, now_ms
from nlp_distill.service.intake import news
from nlp_distill.service.launch import outcome_file
from nlp_distill.service.processes import members, send
from nlp_distill.service.reasons import Ending, Reason, of_error
from nlp_distill.service.redaction import redact
from nlp_distill.service.store.queue import Artifact, Claim, Queue

DELIVERED = ("results.json", "report.html", "recipe.yaml", "manifest.json", "model", "predictions")
MEDIA_TYPES = {
    **dict.fromkeys((".json", ".jsonl"), "application/json"),
    **dict.fromkeys((".yaml", ".md", ".txt"), "text/plain; charset=utf-8"),
    ".html": "text/html; charset=utf-8",
}
DUMP_S = 3.0
"""How long a process that stands still may write where it stands."""


@dataclass
class Attempt:
    """What a worker knows of an attempt that it runs. Durations are by the monotonic clock."""

    home: Home
    queue: Queue
    executor: Executor
    claim: Claim
    spec: Spec
    handle: str
    deadline_at: int | None
    grace_s: float
    stall_s: float
    began: float = field(default_factory=time.monotonic)
    moved: float = field(default_factory=time.monotonic)
    read: int = 0
    log_size: int = -1
    asked: bool = False
    limit: Ending | None = None
    stop_at: float | None = None

    def __post_init__(self) -> None:
        self.read = self.claim.consumed

    @property
    def run_ms(self) -> int:
        """How long the job ran, earlier attempts counted."""
        return self.claim.run_ms + int((time.monotonic() - self.began) * 1000)

    def advance(self, status: str, draining: bool) -> State:
        """Take in what the run said, keep its limits, pass on what was asked. Raises `Fenced`."""
        self.take_in()
        state = self.executor.poll(self.handle)
        if state.kind == "running":
            if (status in ("cancelling", "pausing") or draining) and not self.asked:
                self.asked = True
                self.executor.stop(self.handle, self.grace_s)
            elif self.limit is None and not self.asked:
                self._keep_limits()
            elif self.stop_at is not None and time.monotonic() > self.stop_at:
                self.executor.stop(self.handle, 0)
        return state

    def take_in(self) -> None:
        """Events, curves and progress into the store, exactly once. Raises `Fenced`."""
        said = news(self.home.run(self.claim.job_id) / "events.jsonl", self.read)
        size = self.spec.log.stat().st_size if self.spec.log.is_file() else 0
        if said.consumed != self.read or size != self.log_size:
            self.moved, self.log_size = time.monotonic(), size
        if said.consumed != self.read:
            self.queue.take_in(self.claim, said.events, said.points, said.consumed, said.progress)
            self.read = said.consumed

    def _keep_limits(self) -> None:
        run_s = self.claim.resources.get("run_s")
        if run_s and self.run_ms > run_s * 1000:
            self._stop(Reason.TIMEOUT, f"It ran for more than run_s, {run_s} s.", self.grace_s)
        elif self.deadline_at is not None and now_ms() > self.deadline_at:
            self._stop(Reason.DEADLINE, "Its deadline passed before it was done.", self.grace_s)
        elif time.monotonic() - self.moved > self.stall_s:
            # Every thread says in the log where it stands; SIGTERM at once would cut that short.
            send(list(members(self.claim.attempt_id)), signal.SIGABRT)
            self.limit = Ending("failed", Reason.STALLED, f"It said nothing for {self.stall_s:g} s.")
            self.stop_at = time.monotonic() + DUMP_S

    def _stop(self, reason: Reason, detail: str, grace_s: float) -> None:
        self.limit = Ending("failed", reason, detail)
        self.executor.stop(self.handle, grace_s)

    def close(self, state: State) -> str:
        """Nothing of it runs any more; keep the last news and say how it ended. Raises `Fenced`."""
        self.executor.reap(self.claim.attempt_id, self.handle)
        before = -1
        while before != self.read:
            before = self.read
            self.take_in()
        ending = self._ending(state)
        made = artifacts(self.home.run(self.claim.job_id)) if ending.kind == "ok" else []
        return self.queue.finish(self.claim, ending, furthest(self.home.run(self.claim.job_id)), made)

    def _ending(self, state: State) -> Ending:
        if state.exit_code == 0:
            return Ending("ok")
        if self.limit is not None:
            return self.limit
        outcome = read_outcome(outcome_file(self.home, self.claim))
        if outcome is not None:
            reason = of_error(outcome["families"], outcome["message"])
            return Ending("failed", reason, redact(outcome["message"]))
        if self.asked:
            return Ending("stopped")
        if state.out_of_memory:
            return Ending("failed", Reason.OOM_HOST, "The kernel killed it: the machine has no memory left.")
        if state.exit_code == 70:
            return Ending("failed", Reason.INTERNAL, "It met a fault of ours; the log says which.")
        if state.exit_code is None:
            return Ending("failed", Reason.PROCESS_LOST, state.detail or "Its process is gone.")
        how = f"signal {-state.exit_code}" if state.exit_code < 0 else f"exit code {state.exit_code}"
        return Ending("failed", Reason.PROCESS_LOST, f"Its process ended without a word ({how}).")


def furthest(run: Path) -> str:
    """How far a run came: complete stages, then the steps of the newest checkpoints; compares as text.

    Phases and tries of one stage have folders of their own: each is a way that was gone.
    """
    try:
        stages = json.loads((run / "manifest.json").read_text(encoding="utf-8")).get("stages", {})
        done = sum("outputs" in record and "seconds" in record for record in stages.values())
    except (OSError, ValueError, AttributeError):
        done = 0
    newest: dict[Path, int] = {}
    for folder in (*run.glob("checkpoints/*/step-*"), *run.glob("checkpoints/*/*/step-*")):
        step = folder.name.removeprefix("step-")
        if step.isdecimal():
            newest[folder.parent] = max(newest.get(folder.parent, 0), int(step))
    return f"{done:02d}:{sum(newest.values()):012d}"


def artifacts(run: Path) -> list[Artifact]:
    """What a finished run delivers, hashed; links are left out."""
    files = [file for name in DELIVERED for file in sorted([run / name, *(run / name).rglob("*")])]
    return [
        Artifact(
            str(file.relative_to(run)),
            file.stat().st_size,
            sha256_file(file),
            MEDIA_TYPES.get(file.suffix, "application/octet-stream"),
        )
        for file in files
        if file.is_file() and not file.is_symlink() and file.resolve().is_relative_to(run.resolve())
    ]
