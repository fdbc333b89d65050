"""Whole jobs as processes: ours from the first import to int8, again with its cache, and what it replaces."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from harness import ROOT
from prepared import Bench, texts, write_rows

ROWS, EPOCHS = 3200, 3
RECIPE = "import sys, json, nlp_distill; from nlp_distill.recipe import Recipe; "
RECIPE += "nlp_distill.run(Recipe.model_validate(json.loads(sys.argv[1])), out=sys.argv[2], until='evaluate')"


def timed(command: list[str], cache: Path) -> dict[str, float]:
    """Seconds of a command: wall, and of all processors."""
    before, start = os.times(), time.perf_counter()
    here = {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tasks")]), "NLP_DISTILL_CACHE": str(cache)}
    done = subprocess.run(command, env={**os.environ, **here, "HF_HUB_OFFLINE": "1"}, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{command[:2]} failed:\n{done.stderr[-2000:]}")
    after = os.times()
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    return {"wall": round(time.perf_counter() - start, 1), "cpu": round(cpu, 1)}


def job(bench: Bench) -> dict[str, Any]:
    """Seconds of each job and their ratios, all threads; one pair, so there is no interval.

    Ours, twice, reports two variants more than the other does (the teacher, both ONNX files).
    """
    rows = write_rows(bench, "job", texts(ROWS + 1))
    recipe = bench.recipe(rows, "wide", epochs=EPOCHS, schedule="linear", keep="best") | {"precision": "auto"}
    cache = bench.folder / "job-cache"
    ours = [sys.executable, "-c", RECIPE, json.dumps(recipe)]
    script = str(Path(__file__).parent / "arms" / "tuned_job.py")
    settings = {
        "rows": str(rows.batches),
        "teacher": str(bench.teacher),
        "student": str(bench.student),
        "test": str(rows.folder / "validation.jsonl"),
        "out": str(bench.folder / "tuned-job"),
        "epochs": EPOCHS,
        "precision": bench.precision,
    }
    seconds = {"first": timed([*ours, str(bench.folder / "job-1")], cache)}
    seconds["tuned"] = timed([sys.executable, script, json.dumps(settings)], cache)
    seconds["second"] = timed([*ours, str(bench.folder / "job-2")], cache)
    shutil.rmtree(bench.folder / "job")

    def one(above: str, below: str) -> dict[str, Any]:
        value = round(seconds[above]["cpu"] / seconds[below]["cpu"], 3)
        return {"value": value}

    found = {"tuned": one("tuned", "first"), "second": one("second", "first")}
    return {"seconds": seconds, "rows": ROWS, "epochs": EPOCHS, "clock": "cpu", "pairs": 1, **found}
