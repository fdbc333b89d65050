"""Run a module in a process that dies with the one that started it: `python -m nlp_distill.service.tied MODULE …`.

A worker that is killed leaves nothing running. The kernel sees to a child whose parent dies (`PR_SET_PDEATHSIG`);
whoever was tied too late asks whether its worker is still there. Torchrun starts the processes of a run in sessions
of their own, so each of them ties itself.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys

from nlp_distill.service.processes import signature

WORKER_VARIABLE = "NLP_DISTILL_WORKER"
FETCH_VARIABLE = "NLP_DISTILL_FETCH"
"""A recipe whose models and data are fetched first: the only process that may use the Hub and its token."""
ONLINE = ("HF_TOKEN", "HF_HUB_OFFLINE", "HF_ENDPOINT")
PR_SET_PDEATHSIG = 1
NICE_VARIABLE = "NLP_DISTILL_NICE"


def tie() -> None:
    """Die when the parent does; exit at once where the worker that is named in the environment has gone already."""
    if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL) != 0:
        raise OSError(ctypes.get_errno(), "prctl")
    worker = os.environ.get(WORKER_VARIABLE, "")
    if worker and signature(int(worker.split(":")[0])) != worker:
        sys.exit(75)


def fetch(recipe: str) -> None:
    """Fetch in a process of its own; from here on there is no token and no Hub. Exits as that process did."""
    command = [sys.executable, "-m", "nlp_distill.service.tied", "nlp_distill.service.fetch", recipe]
    code = subprocess.run(command, check=False).returncode
    for name in ONLINE:
        os.environ.pop(name, None)
    os.environ["HF_HUB_OFFLINE"] = "1"
    if code != 0:
        sys.exit(code if code > 0 else 1)


def main() -> None:
    """Tie this process, then become the module."""
    tie()
    if recipe := os.environ.pop(FETCH_VARIABLE, ""):
        fetch(recipe)
    if NICE_VARIABLE in os.environ:
        os.nice(int(os.environ.pop(NICE_VARIABLE, "0")))
    # Execution keeps the tie.
    os.execv(sys.executable, [sys.executable, "-m", *sys.argv[1:]])


if __name__ == "__main__":
    main()
