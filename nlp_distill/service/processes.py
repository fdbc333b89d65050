"""Processes, named so that a number that was used again is never mistaken for the process that had it."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

ATTEMPT_VARIABLE = "NLP_DISTILL_ATTEMPT"
PROC = Path("/proc")


def boot() -> str:
    """The start of this machine that we live in."""
    return (PROC / "sys/kernel/random/boot_id").read_text().strip()


def signature(pid: int) -> str | None:
    """`PID:TICKS:BOOT` of a process that lives: when it began, since which boot. None: there is none."""
    try:
        fields = (PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
    except (OSError, ValueError):
        return None
    return None if fields[0] in ("Z", "X") else f"{pid}:{fields[19]}:{boot()}"


def alive(name: str) -> bool:
    """Whether the process with this signature still lives."""
    return signature(int(name.split(":", 1)[0])) == name


def members(attempt_id: str) -> Iterator[int]:
    """Processes of ours that carry an attempt's name in their environment, in whatever session."""
    wanted = f"{ATTEMPT_VARIABLE}={attempt_id}".encode()
    for folder in PROC.iterdir():
        if folder.name.isdecimal():
            try:
                environment = (folder / "environ").read_bytes().split(b"\0")
            except OSError:
                continue  # It ended, or belongs to another user.
            if wanted in environment and signature(int(folder.name)) is not None:
                yield int(folder.name)


def killed_for_memory() -> int:
    """How many processes of this machine the kernel has killed for memory so far."""
    for line in (PROC / "vmstat").read_text().splitlines():
        if line.startswith("oom_kill "):
            return int(line.split()[1])
    return 0


def send(pids: list[int], number: signal.Signals) -> None:
    """A signal to each that is still there."""
    for pid in pids:
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            continue


def kill_all(attempt_id: str, seconds: float = 10.0) -> bool:
    """SIGKILL until nothing of an attempt is left; False when something survives."""
    deadline = time.monotonic() + seconds
    while left := list(members(attempt_id)):
        if time.monotonic() > deadline:
            return False
        # Stopped first: who is stopped starts nothing more.
        send(left, signal.SIGSTOP)
        send(left, signal.SIGKILL)
        time.sleep(0.02)
    return True
