"""Scores of any variant, through one path: the raw outputs of the pipeline that a user would call."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
from datasets import Dataset
from numpy.typing import NDArray

from nlp_distill.task import Task

Array = NDArray[Any]
RESAMPLES = 1000
CHUNK_SECONDS = 0.5


def predict(
    pipe: Any,
    task: Task,
    rows: Dataset,
    batch_size: int = 1,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> NDArray[np.float32]:
    """Raw outputs [rows, labels] in row order.

    With `batch_size` above 1 rows are given sorted by length, which only saves padding. Keep 1 for dynamic int8:
    its answers depend on the rest of the batch, and the number that is reported must be the user's.
    """
    inputs = task.pipeline_inputs(rows)
    order = sorted(range(len(inputs)), key=lambda i: len(str(inputs[i]))) if batch_size > 1 else range(len(inputs))
    answers: dict[int, Any] = {}
    shown = time.monotonic()
    for start in range(0, len(inputs), batch_size):
        numbers = list(order[start : start + batch_size])
        batch = [inputs[i] for i in numbers]
        outputs = pipe(batch, batch_size=batch_size, top_k=None, function_to_apply="none")
        answers.update(zip(numbers, outputs, strict=True))
        if time.monotonic() - shown > CHUNK_SECONDS:
            shown = time.monotonic()
            on_progress(len(answers), len(inputs))
    on_progress(len(inputs), len(inputs))
    return task.raw_outputs([answers[i] for i in range(len(inputs))])


def interval(task: Task, raw: Array, rows: Dataset, seed: int = 0) -> list[float]:
    """95 % bootstrap interval of the primary metric, in points (Efron & Tibshirani 1993)."""
    return _percentiles([scores[0] for scores in _resampled(task, [raw], rows, seed)])


def paired_interval(task: Task, raw: Array, other: Array, rows: Dataset, seed: int = 0) -> list[float]:
    """95 % interval of the primary metric of `raw` minus that of `other`, on the same resampled rows."""
    return _percentiles([ours - theirs for ours, theirs in _resampled(task, [raw, other], rows, seed)])


def _resampled(task: Task, raws: list[Array], rows: Dataset, seed: int) -> list[list[float]]:
    generator = np.random.default_rng(seed)
    references = task.references(rows)
    scores = []
    for _ in range(RESAMPLES):
        sample = generator.integers(0, len(rows), len(rows))
        against = {name: values[sample] for name, values in references.items()}
        scores.append([task.score_arrays(raw[sample], against)[task.primary_metric] for raw in raws])
    return scores


def _percentiles(values: list[float]) -> list[float]:
    return [round(float(value), 2) for value in np.percentile(values, [2.5, 97.5])]


def agreement(task: Task, raw: Array, other: Array) -> float | None:
    """Share of rows with equal decisions; None where the task decides nothing (regression)."""
    ours, theirs = task.decisions(raw), task.decisions(other)
    if ours is None or theirs is None:
        return None
    return float(np.mean(ours == theirs))
