"""From a claimed job to a command: its recipe on disk, its environment, its limits."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import yaml

from nlp_distill.outcome import OUTCOME_VARIABLE
from nlp_distill.rundir import write_text
from nlp_distill.service.executors.contract import Spec
from nlp_distill.service.home import Home
from nlp_distill.service.references import localised
from nlp_distill.service.store.queue import Claim
from nlp_distill.service.tied import FETCH_VARIABLE, NICE_VARIABLE, ONLINE

PASSED_ON = (
    *("PATH", "HOME", "USER", "LANG", "LC_ALL", "LC_CTYPE", "TZ", "TMPDIR", "PYTHONPATH", "VIRTUAL_ENV"),
    *("HF_HOME", "HF_HUB_CACHE", "HF_DATASETS_CACHE", "XDG_CACHE_HOME", "NLP_DISTILL_CACHE", "LD_LIBRARY_PATH"),
    *("OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES", "NVIDIA_VISIBLE_DEVICES", "SSL_CERT_FILE"),
)
"""What an attempt gets of the worker's environment, and nothing else: no token, no proxy, no cloud's keys."""


def outcome_file(home: Home, claim: Claim) -> Path:
    """Where the attempt says why it failed."""
    return home.log(claim.job_id, claim.attempt_id).with_suffix(".outcome.json")


def prepare(home: Home, claim: Claim, place: Callable[[str], str], online: bool, niceness: int) -> Spec:
    """Write the recipe and say what to run. `place`: an id → where it lies."""
    folder = home.job(claim.job_id)
    recipe = folder / "recipe.yaml"
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    write_text(recipe, yaml.safe_dump(localised(claim.recipe, place), sort_keys=False, allow_unicode=True))
    processes, gpus = int(claim.resources.get("processes", 1)), int(claim.resources.get("gpus", 0))
    environment = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
    environment |= {
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        # A process that stands still is asked where, by SIGABRT.
        "PYTHONFAULTHANDLER": "1",
        NICE_VARIABLE: str(niceness),
        OUTCOME_VARIABLE: str(outcome_file(home, claim)),
    }
    if threads := claim.resources.get("threads"):
        environment["OMP_NUM_THREADS"] = str(threads)
    if not gpus:
        environment["ACCELERATE_USE_CPU"] = "true"
    if online:
        del environment["HF_HUB_OFFLINE"]
        environment |= {name: os.environ[name] for name in ONLINE if name in os.environ}
        environment[FETCH_VARIABLE] = str(recipe)
    return Spec(
        claim.attempt_id,
        ("nlp_distill.cli", "run", str(recipe), "--out", str(home.run(claim.job_id))),
        # Empty, so that no name in a recipe is a place.
        folder / "work",
        home.log(claim.job_id, claim.attempt_id),
        environment,
        processes,
        gpus,
    )
