"""The child's side of a measurement: run a block when told to, say what it took. Needs only the standard library."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any


def memory_mb(field: str) -> float:
    """A field of /proc/self/status in MB: VmRSS, what is held now, or VmHWM, the most since `clear_peak`."""
    line = next(line for line in Path("/proc/self/status").read_text().split("\n") if line.startswith(f"{field}:"))
    return int(line.split()[1]) / 1000


def clear_peak() -> None:
    """Let VmHWM begin anew."""
    Path("/proc/self/clear_refs").write_text("5")


class Gate:
    """Stands between the blocks of one engine: `block()` says what the last one took and waits for the next command.

    What libraries print goes to stderr; the real stdout carries answers only. Made after the imports: memory is
    counted from here.
    """

    def __init__(self) -> None:
        self.answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
        os.dup2(2, 1)
        self.imported_mb = memory_mb("VmRSS")
        self.started: tuple[float, float] | None = None

    def block(self, **about: Any) -> None:
        """The end of a block, and at the first call of the warm-up: `about` is answered, with times and memory."""
        if self.started is not None:
            wall, cpu = self.started
            about |= {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}
        about["peak_mb"] = memory_mb("VmHWM") - self.imported_mb
        if self.started is None:
            clear_peak()
        self.answers.write(json.dumps(about) + "\n")
        self.answers.flush()
        if not sys.stdin.readline():
            os._exit(0)
        self.started = time.perf_counter(), time.process_time()
