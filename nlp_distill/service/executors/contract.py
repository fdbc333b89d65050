"""What a place must offer where attempts run: five calls. The store stays the truth; a place only runs commands.

`tests/service/test_executors.py` is the contract: every executor passes the same cases.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol


@dataclass(frozen=True)
class Spec:
    """One attempt: a module and its arguments (`python -m MODULE …`), its folder, its log, its whole environment."""

    attempt_id: str
    arguments: tuple[str, ...]
    folder: Path
    log: Path
    environment: Mapping[str, str]
    processes: int = 1
    gpus: int = 0


@dataclass(frozen=True)
class State:
    """`exit_code` is that of the command (negative: killed by that signal); None where the place cannot say.

    `out_of_memory`: meanwhile the kernel killed something of that machine for memory.
    """

    kind: Literal["running", "ended", "lost"]
    exit_code: int | None = None
    detail: str = ""
    out_of_memory: bool = False


class Unavailable(Exception):
    """The place takes nothing now, whatever it is asked: no fault of the attempt. The text says why."""


class Executor(Protocol):
    """A place where attempts run. A handle is text that the store keeps."""

    name: str

    def submit(self, spec: Spec) -> str:
        """Start the attempt, or find it: a second submission of the same attempt starts nothing.

        Raises `Unavailable`; nothing of the attempt runs then, or ever will.
        """
        ...

    def poll(self, handle: str) -> State:
        """How it goes. `lost`: the place does not know it."""
        ...

    def logs(self, handle: str, offset: int, limit: int = 1 << 20) -> bytes:
        """What it wrote, from an offset on."""
        ...

    def stop(self, handle: str, grace_s: float) -> None:
        """Ask it to stop (SIGTERM); end it after the grace. Returns at once, may be called again."""
        ...

    def reap(self, attempt_id: str, handle: str | None) -> None:
        """When this returns nothing of the attempt runs. Raises `TimeoutError`."""
        ...
