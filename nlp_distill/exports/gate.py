"""Export is not done until it is proven: each form is made, judged on the selection rows, repaired or refused."""

from __future__ import annotations

import math
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset
from numpy.typing import NDArray

from nlp_distill.exports.format import Form, Format, Work
from nlp_distill.exports.parity import answer_changes, logit_difference, require_parity
from nlp_distill.loading import load_model, seeded
from nlp_distill.recipe import Export
from nlp_distill.rundir import place_files
from nlp_distill.scores import predict
from nlp_distill.task import Task

Array = NDArray[Any]
TINY = 1e-12
FEW_ROWS = 16
"""Selection rows below which neither a range of activations nor a lost point says much."""
TOO_LARGE = "its weights take more than 2 GB, which nothing here quantizes"


class Gate:
    """Judges the forms of one student. `student`: PyTorch's raw outputs on the selection rows."""

    def __init__(self, work: Work, student: Array) -> None:
        self.work, self.student = work, student
        self.sources: dict[str, Array] = {}

    def prove(self, entry: Format, form: Form, settings: Export) -> dict[str, Any]:
        """Make a form: the first attempt that passes stays. Returns the report of all attempts, for the results.

        Raises `ParityFailed` for fp32 that is not PyTorch's.
        """
        report: dict[str, Any] = {"format": entry.name, "profile": form.profile, "variant": form.variant}
        rows = len(self.work.rows.raw)
        if not form.exact and rows < FEW_ROWS:
            few = f"{form.variant} is calibrated and judged on {rows} row(s) alone"
            self.work.notify("warning", stage="export", message=f"{few}: set data.selection to {FEW_ROWS} or more")
        tried: list[dict[str, Any]] = []
        for attempt in entry.attempts(self.work, form, settings):
            self.work.notify("note", message=f"writing {form.variant}" + (" once more" if tried else ""))
            # Optimum traces with random words: by bad luck, rows that a BART classifier refuses. Luck is not to decide.
            with seeded(0), tempfile.TemporaryDirectory() as scratch:
                found = {**attempt.says, **(attempt.write(Path(scratch)) or {})}
                place_files(Path(scratch), self.work.model / entry.folder)
            if form.exact:
                return {**report, "status": "passed", **found, "parity": self._parity(entry, form)}
            found["gate"] = {**self._loss(entry, form), "allowed": settings.score_drop}
            tried.append(found)
            drop = found["gate"]["drop_on_selection"]
            if drop is not None and drop <= settings.score_drop:
                return {**report, "status": "passed" if len(tried) == 1 else "repaired", **found, "attempts": tried}
            self.work.notify("note", message=f"{form.variant} {_lost(drop)} ({_said(found)})")
            for file in entry.files(self.work.model, form):
                file.unlink()
        if not tried:
            self.work.notify("warning", stage="export", message=f"{form.variant}: {TOO_LARGE}: refused")
            return {**report, "status": "refused", "attempts": tried}
        best = min(tried, key=lambda found: _order(found["gate"]["drop_on_selection"]))
        self.work.notify(
            "warning",
            stage="export",
            message=f"{form.variant} {_lost(best['gate']['drop_on_selection'])} on the selection rows "
            f"(allowed {settings.score_drop}) in the best of {len(tried)} attempts: refused",
        )
        return {**report, "status": "refused", **best, "attempts": tried}

    def _outputs(self, entry: Format, form: Form) -> Array:
        work = self.work
        loaded = entry.load(work.model, work.task.auto_class, form)

        def progress(done: int, total: int) -> None:
            work.notify("progress", stage=f"checking: {form.variant}", step=done, steps=total)

        pipe = entry.pipeline(loaded, work.task, work.tokenizer)
        return predict(pipe, work.task, work.rows.raw, form.batch, progress)

    def _parity(self, entry: Format, form: Form) -> dict[str, Any]:
        work, auto_class = self.work, self.work.task.auto_class
        self.sources[entry.name] = self._outputs(entry, form)
        exported = entry.load(work.model, auto_class, form)
        found = logit_difference(work.task, work.tokenizer, load_model(work.model, auto_class), exported, work.rows)
        parity = {**answer_changes(work.task, self.student, self.sources[entry.name]), **found}
        require_parity(form.variant, parity)
        return parity

    def _loss(self, entry: Format, form: Form) -> dict[str, Any]:
        task, rows = self.work.task, self.work.rows.raw
        source, raw = self.sources.get(entry.name, self.student), self._outputs(entry, form)
        return {**answer_changes(task, source, raw), "drop_on_selection": points_lost(task, source, raw, rows)}


def points_lost(task: Task, source: Array, raw: Array, rows: Dataset) -> float | None:
    """What `raw` lost of the primary metric of `source`, in points; None where nothing tells.

    A correlation does not see that all numbers are shifted or shrunk: their squared distance counts too, as what
    noise of that size would cost a correlation, half its share of the variance. A score of nothing has nothing to
    lose: there the share of changed answers counts.
    """
    before, after = (task.score(answers, rows)[task.primary_metric] for answers in (source, raw))
    lost, decided = before - after, task.decisions(source)
    if decided is None:
        ours, theirs = (np.asarray(answers, np.float64) for answers in (source, raw))
        lost = max(lost, 50 * float(np.square(ours - theirs).mean() / max(ours.var(), TINY)))
    elif all(answer is None for answer in decided):
        return None
    elif before <= 0:
        lost = 100 * float(np.mean(decided != task.decisions(raw)))
    return round(lost, 2) if math.isfinite(lost) else None


def _lost(drop: float | None) -> str:
    return "cannot be judged" if drop is None else f"lost {drop:.2f} points"


def _order(drop: float | None) -> float:
    return math.inf if drop is None else drop


def _said(found: dict[str, Any]) -> str:
    return str(found.get("quantization", "as it is"))
