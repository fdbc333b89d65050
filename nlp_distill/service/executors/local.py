"""Attempts as processes of this machine, a session each, tied to the worker."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from nlp_distill.service.executors.contract import Spec, State
from nlp_distill.service.processes import ATTEMPT_VARIABLE, alive, kill_all, killed_for_memory, members, send, signature
from nlp_distill.service.redaction import redact
from nlp_distill.service.tied import WORKER_VARIABLE

MOST_LOG = 64 << 20
LONGEST_LINE = 16 << 10


@dataclass
class _Running:
    process: subprocess.Popen[bytes]
    pump: threading.Thread
    attempt_id: str
    deadline: float | None = None
    kills_before: int = field(default_factory=killed_for_memory)


class LocalExecutor:
    """Processes on this machine. Call `submit` from the thread that lives longest: the tie is to that thread."""

    name = "local"

    def __init__(self) -> None:
        self._running: dict[str, _Running] = {}

    def submit(self, spec: Spec) -> str:
        """Start the attempt; one that runs already is found again."""
        for handle, running in self._running.items():
            if running.attempt_id == spec.attempt_id:
                return handle
        for pid in members(spec.attempt_id):
            return self._handle(pid, spec)
        spec.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        spec.log.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        own = {ATTEMPT_VARIABLE: spec.attempt_id, WORKER_VARIABLE: signature(os.getpid()) or ""}
        process = subprocess.Popen(
            [sys.executable, "-m", "nlp_distill.service.tied", *_command(spec)],
            cwd=spec.folder,
            env={**spec.environment, **own},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        assert process.stdout is not None
        pump = threading.Thread(target=_pump, args=(process.stdout, spec.log), name="log", daemon=True)
        pump.start()
        handle = self._handle(process.pid, spec)
        self._running[handle] = _Running(process, pump, spec.attempt_id)
        return handle

    def _handle(self, pid: int, spec: Spec) -> str:
        return json.dumps({"process": signature(pid) or f"{pid}:0:", "attempt": spec.attempt_id, "log": str(spec.log)})

    def poll(self, handle: str) -> State:
        """How it goes; past its grace it is killed here."""
        running = self._running.get(handle)
        if running is None:
            return State("running" if alive(json.loads(handle)["process"]) else "lost")
        code = running.process.poll()
        if code is not None:
            # Of several processes, one may outlive the one that started them.
            kill_all(running.attempt_id)
            running.pump.join(5)
            return State("ended", code, out_of_memory=killed_for_memory() > running.kills_before)
        if running.deadline is not None and time.monotonic() > running.deadline:
            kill_all(running.attempt_id)
        return State("running")

    def logs(self, handle: str, offset: int, limit: int = 1 << 20) -> bytes:
        """What it wrote, from an offset on."""
        return part_of(Path(json.loads(handle)["log"]), offset, limit)

    def stop(self, handle: str, grace_s: float) -> None:
        """SIGTERM to its first process, which passes it on."""
        running = self._running.get(handle)
        if running is None or running.process.poll() is not None:
            return
        if running.deadline is None:
            running.deadline = time.monotonic() + grace_s
            send([running.process.pid], signal.SIGTERM)
        running.deadline = min(running.deadline, time.monotonic() + grace_s)

    def reap(self, attempt_id: str, handle: str | None) -> None:
        """Kill what is left of it."""
        if not kill_all(attempt_id):
            raise TimeoutError(f"processes of {attempt_id} do not end")
        running = self._running.pop(handle or "", None)
        if running is not None:
            running.process.wait(10)
            running.pump.join(5)


def part_of(log: Path, offset: int, limit: int) -> bytes:
    """Some of a log; nothing where there is none yet."""
    if not log.is_file():
        return b""
    with log.open("rb") as stream:
        stream.seek(offset)
        return stream.read(limit)


def _command(spec: Spec) -> list[str]:
    """One process as it is; several through torchrun, which places them; on GPUs through Accelerate."""
    if spec.gpus:
        several = ["--multi_gpu"] if spec.processes > 1 else []
        launch = ["accelerate.commands.launch", *several, "--num_machines", "1", "--mixed_precision", "no"]
        launch += ["--dynamo_backend", "no", "--num_processes", str(spec.processes), "--module"]
        return [*launch, "nlp_distill.service.tied", *spec.arguments]
    if spec.processes > 1:
        launch = ["torch.distributed.run", "--standalone", "--nproc_per_node", str(spec.processes), "-m"]
        return [*launch, "nlp_distill.service.tied", *spec.arguments]
    return [*spec.arguments]


def _pump(source: IO[bytes], log: Path) -> None:
    """Lines of a process into its log, without secrets, up to a size; read to the end, so that it never blocks."""
    written = log.stat().st_size if log.exists() else 0
    with source, log.open("ab", buffering=0) as target:
        while line := source.readline(LONGEST_LINE):
            clean = redact(line.decode("utf-8", "replace")).encode()
            if written <= MOST_LOG < written + len(clean):
                clean = b"[the log is full]\n"
            elif written > MOST_LOG:
                continue
            written += len(clean)
            # A full disk costs lines of the log, not the process that writes them.
            with contextlib.suppress(OSError):
                target.write(clean)
