"""What a Ray job runs on its node: one attempt, as processes of that node: `python -m …ray_node FOLDER`.

The attempt's folder, on storage that worker and nodes share, is the line between them: `spec.json` says what to run,
`stop` asks for its end, `end.json` says how it ended. No Ray is needed for it, and a worker that Ray's head no longer
answers can still end what it started. The processes are tied to this one, and this one to Ray's supervisor of the job.
"""

from __future__ import annotations

import dataclasses
import json
import os
import platform
import signal
import sys
import time
from pathlib import Path
from typing import Any

from nlp_distill.rundir import write_json
from nlp_distill.service.executors.contract import Spec, State
from nlp_distill.service.executors.local import LocalExecutor
from nlp_distill.service.processes import kill_all
from nlp_distill.service.redaction import NAMES
from nlp_distill.service.tied import tie

SPEC, STOP, END = "spec.json", "stop", "end.json"
LOOK_S = 0.2
STOPPED = 75
OF_THE_NODE = ("CUDA_VISIBLE_DEVICES", "NVIDIA_VISIBLE_DEVICES", "LD_LIBRARY_PATH")
"""What Ray and the node's image know better than the worker."""


def write_spec(folder: Path, spec: Spec) -> None:
    """Leave an attempt for its node, readable by its owner alone: it may hold the Hub's token."""
    values = dataclasses.asdict(spec) | {"folder": str(spec.folder), "log": str(spec.log)}
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    write_json(folder / SPEC, values)


def read_end(folder: Path) -> State | None:
    """How the attempt ended, as its node said; None where it has not."""
    try:
        return State(**json.loads((folder / END).read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None


def _take_spec(folder: Path) -> Spec:
    values: dict[str, Any] = json.loads((folder / SPEC).read_text(encoding="utf-8"))
    (folder / SPEC).unlink()
    given = values["environment"]
    environment = {name: value for name, value in given.items() if name not in OF_THE_NODE}
    environment |= {name: os.environ[name] for name in OF_THE_NODE if name in os.environ}
    # The attempt has no more than it was given; this process cleans its log of what is secret in that.
    os.environ.update({name: given[name] for name in NAMES if name in given})
    places = {"folder": Path(values["folder"]), "log": Path(values["log"])}
    return Spec(**{**values, **places, "arguments": tuple(values["arguments"]), "environment": environment})


def _grace(folder: Path) -> float | None:
    """Seconds that the attempt has left; None: nobody asked. Without its folder it has none: it was given up."""
    try:
        return float((folder / STOP).read_text(encoding="ascii"))
    except FileNotFoundError:
        return None if folder.is_dir() else 0.0


def _end(folder: Path, state: State) -> None:
    if folder.is_dir():
        write_json(folder / END, dataclasses.asdict(state))


def _guard(attempt_id: str, folder: Path) -> None:
    """Leave a process behind that ends the attempt's when this one is killed, in whatever sessions they are."""
    held, holding = os.pipe()
    if os.fork() != 0:
        os.close(held)
        return
    os.setsid()
    os.close(holding)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    # It gives nothing until the last holder is gone: children do not inherit it.
    os.read(held, 1)
    kill_all(attempt_id)
    if read_end(folder) is None:
        _end(folder, State("lost", detail=f"Ray ended its job on the node {platform.node()}."))
    os._exit(0)


def run(folder: Path) -> int:
    """The attempt, from its start to its end; its exit code."""
    if _grace(folder) is not None:
        _end(folder, State("ended", STOPPED, "It was stopped before it began."))
        return STOPPED
    spec = _take_spec(folder)
    _guard(spec.attempt_id, folder)
    executor = LocalExecutor()
    handle = executor.submit(spec)
    while (state := executor.poll(handle)).kind == "running":
        if (grace := _grace(folder)) is not None:
            executor.stop(handle, grace)
        time.sleep(LOOK_S)
    executor.reap(spec.attempt_id, handle)
    _end(folder, state)
    return state.exit_code if state.exit_code is not None else 1


def main() -> None:
    """A sentence for Ray's log where the storage is not shared."""
    tie()
    # Ray's own stop tells every process of the job; the attempt's go first, with their checkpoint.
    signal.signal(signal.SIGTERM, lambda *_: None)
    folder = Path(sys.argv[1])
    if not folder.is_dir():
        sys.exit(f"The node {platform.node()} has no {folder}: the service's folder must be mounted there.")
    code = run(folder)
    sys.exit(code if code >= 0 else 128 - code)


if __name__ == "__main__":
    main()
