"""What ends a run that has started, said in one sentence: memory, disk, a lost process, standing still."""

from __future__ import annotations

import errno
import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from nlp_distill.errors import (
    DiskFailed,
    DiskFull,
    Interrupted,
    NlpDistillError,
    OutOfMemory,
    ProcessLost,
    RunFailed,
    Stalled,
)

NO_MEMORY = ("can't allocate memory", "not enough memory", "out of memory", "std::bad_alloc", "failed to allocate")
"""How torch, its allocators and ONNX Runtime say it."""
NO_PEER = ("connection closed by peer", "connection reset", "connection refused", "broken pipe", "gloo", "nccl")
TELLING_SECONDS = 5.0
DISK = (errno.EIO, errno.EROFS, errno.ENODEV, errno.EFBIG, errno.ESTALE)


@contextmanager
def together(stage: str) -> Iterator[None]:
    """Of several processes, name the loss of another. Raises `ProcessLost`; everything else passes."""
    try:
        yield
    except RuntimeError as error:
        said = str(error).strip()
        if int(os.environ.get("WORLD_SIZE", "1")) > 1 and any(words in said.lower() for words in NO_PEER):
            raise ProcessLost(stage=stage, reason=said.splitlines()[0][:200]) from error
        raise


@contextmanager
def named(stage: str, stopping: Callable[[], bool] = lambda: False) -> Iterator[None]:
    """Turn what a machine does to a stage into an error that names the stage, the reason and a way on.

    Raises `OutOfMemory`, `DiskFailed`, `ProcessLost`, `Interrupted`; everything else passes.
    """
    try:
        with together(stage):
            yield
    except RunFailed as error:
        # Ctrl-C ends the processes that work for this one, too: they did not fail. Its kinds have reasons of their own.
        if type(error) is RunFailed and stopping():
            raise Interrupted(step=0, stage=stage) from error
        raise
    except DiskFull as error:
        raise DiskFailed(stage=stage, reason=str(error)) from error
    except MemoryError as error:
        raise OutOfMemory(stage=stage, reason="no memory is left") from error
    except OSError as error:
        if error.errno in DISK:
            raise DiskFailed(stage=stage, reason=f"{error.filename or 'a file'}: {error.strerror}") from error
        raise
    except RuntimeError as error:
        said = str(error).strip()
        if any(words in said.lower() for words in NO_MEMORY):
            raise OutOfMemory(stage=stage, reason=said.splitlines()[0][:200]) from error
        raise


@contextmanager
def watched(stage: str, minutes: float, notify: Callable[..., None]) -> Iterator[Callable[[], None]]:
    """Gives a function to call at each step; ends the process, exit code 3, when it was not called for so long.

    What stands still cannot be asked to stop: a disk that has gone keeps its reader forever. Nothing is lost but
    the steps since the last checkpoint. Turns are counted, not time: the machine may sleep, the process be paused.
    """
    turn, turns = min(minutes * 60 / 4, 15.0), 0
    over = threading.Event()

    def beat() -> None:
        nonlocal turns
        turns = 0

    def watch() -> None:
        nonlocal turns
        while not over.wait(turn):
            turns += 1
            if turns * turn > minutes * 60:
                error = Stalled(stage=stage, minutes=minutes)
                # Whoever tells it may stand still on the same disk.
                teller = threading.Thread(target=tell, args=(error,), daemon=True)
                teller.start()
                teller.join(TELLING_SECONDS)
                os._exit(error.exit_code)

    def tell(error: Stalled) -> None:
        sys.stderr.write(f"Error: {error}\n")
        sys.stderr.flush()
        with suppress(OSError, NlpDistillError):
            notify("warning", stage=stage, message=str(error))

    watcher = threading.Thread(target=watch, name="watch", daemon=True)
    watcher.start()
    try:
        yield beat
    finally:
        over.set()
        watcher.join()
