"""Scores of any variant, through one path: the raw outputs of the pipeline that a user would call."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from datasets import Dataset
from numpy.typing import NDArray

from nlp_distill.task import Task

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

Array = NDArray[Any]
RESAMPLES = 1000
CHUNK_SECONDS = 0.5


def model_pipeline(task: Task, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> Any:
    """The task's pipeline around a model in memory, on the model's device."""
    import transformers

    settings = task.pipeline_settings(tokenizer)
    return transformers.pipeline(task.pipeline_task, model=model, tokenizer=tokenizer, device=model.device, **settings)


def predict(
    pipe: Any,
    task: Task,
    rows: Dataset,
    batch_size: int = 1,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Array:
    """Raw outputs in row order: an array whose first axis is the row.

    With `batch_size` above 1 rows are given sorted by length, which only saves padding. Keep 1 for dynamic int8:
    its answers depend on the rest of the batch, and the number that is reported must be the user's.
    """
    inputs = task.pipeline_inputs(rows)
    order = sorted(range(len(inputs)), key=lambda i: len(str(inputs[i]))) if batch_size > 1 else range(len(inputs))
    answers: dict[int, Any] = {}
    shown = time.monotonic()
    for start in range(0, len(inputs), batch_size):
        numbers = list(order[start : start + batch_size])
        outputs = task.answers(pipe, [inputs[i] for i in numbers], batch_size)
        answers.update(zip(numbers, outputs, strict=True))
        if time.monotonic() - shown > CHUNK_SECONDS:
            shown = time.monotonic()
            on_progress(len(answers), len(inputs))
    on_progress(len(inputs), len(inputs))
    return task.raw_outputs([answers[i] for i in range(len(inputs))])


def raw_lines(raw: Array) -> str:
    """Raw outputs as JSON lines, one a row; numbers are written so that they are read back exactly."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in raw.tolist())


def read_raw(text: str) -> Array:
    """What `raw_lines` wrote."""
    # Texts may hold what `splitlines` takes for the end of one.
    rows = [json.loads(line) for line in text.split("\n")[:-1]]
    if rows and all(isinstance(row, list) and len(row) == len(rows[0]) for row in rows) and _numbers(rows):
        return np.array(rows, dtype=np.float32)
    raw = np.empty(len(rows), dtype=object)
    for number, row in enumerate(rows):
        raw[number] = row
    return raw


def _numbers(rows: list[list[Any]]) -> bool:
    """Whether all cells are numbers; `raw_lines` writes what is not finite as such, too."""
    return all(isinstance(cell, int | float) for row in rows for cell in row)


def interval(task: Task, raw: Array, rows: Dataset, seed: int = 0) -> list[float]:
    """95 % bootstrap interval of the primary metric, in points (Efron & Tibshirani 1993)."""
    return _percentiles([scores[0] for scores in _resampled(task, [raw], rows, seed)])


def paired_interval(task: Task, raw: Array, other: Array, rows: Dataset, seed: int = 0) -> list[float]:
    """95 % interval of the primary metric of `raw` minus that of `other`, on the same resampled rows."""
    return _percentiles([ours - theirs for ours, theirs in _resampled(task, [raw, other], rows, seed)])


def _resampled(task: Task, raws: list[Array], rows: Dataset, seed: int) -> list[list[float]]:
    generator = np.random.default_rng(seed)
    found = [task.statistics(raw, rows) for raw in raws]
    scores = []
    for _ in range(RESAMPLES):
        sample = generator.integers(0, len(rows), len(rows))
        resampled = [{name: values[sample] for name, values in statistics.items()} for statistics in found]
        scores.append([task.score_statistics(statistics)[task.primary_metric] for statistics in resampled])
    return scores


def _percentiles(values: list[float]) -> list[float]:
    return [round(float(value), 2) + 0.0 for value in np.percentile(values, [2.5, 97.5])]


def agreement(task: Task, raw: Array, other: Array) -> float | None:
    """Share of rows with equal decisions, where one is asked for; None where the task decides nothing (regression)."""
    ours, theirs = task.decisions(raw), task.decisions(other)
    if ours is None or theirs is None:
        return None
    asked = [one is not None for one in ours]
    return float(np.mean((ours == theirs)[asked])) if any(asked) else None
