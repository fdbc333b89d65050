"""What answers tell beyond scores: groups of rows, labels mixed up, rows on which student and teacher part."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from nlp_distill.errors import shown

if TYPE_CHECKING:
    from datasets import Dataset

    from nlp_distill.task import Confusion, Groups, Task

MOST_GROUPS, MOST_LABELS, MOST_PAIRS, MOST_ROWS = 200, 16, 20, 20


def grouped(ours: Groups | None, theirs: Groups | None) -> dict[str, Any] | None:
    """A table: a row a group, each score beside the teacher's."""
    if ours is None:
        return None
    rows = []
    for number, name in enumerate(ours.names[:MOST_GROUPS]):
        cells = []
        for score, values in ours.scores.items():
            other = theirs.scores[score][number] if theirs is not None else None
            cells.append((_points(values[number]), "" if theirs is None else _points(other)))
        rows.append({"name": shown(name), "rows": f"{ours.rows[number]:,}", "cells": cells})
    left_out = len(ours.names) - len(rows)
    return {
        "by": ours.by,
        "scores": list(ours.scores),
        "rows": rows,
        "teacher": theirs is not None,
        "note": f"{left_out:,} more are left out." if left_out > 0 else "",
    }


def _points(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


def mixed(confusion: Confusion | None) -> dict[str, Any] | None:
    """A matrix with each cell's share of its row; of many labels only the pairs that are mixed up most."""
    if confusion is None:
        return None
    labels = [shown(label) for label in confusion.labels]
    counts = np.array(confusion.counts)
    if len(labels) <= MOST_LABELS:
        shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
        rows = [
            (label, [(f"{counts[n, m]:,}", f"{shares[n, m]:.3f}", n == m) for m in range(len(labels))])
            for n, label in enumerate(labels)
        ]
        return {"labels": labels, "rows": rows, "pairs": []}
    wrong = counts * (1 - np.eye(len(labels), dtype=int))
    order = np.argsort(-wrong, axis=None, kind="stable")[:MOST_PAIRS]
    places = [divmod(int(place), len(labels)) for place in order]
    pairs = [
        (labels[true], labels[given], f"{wrong[true, given]:,}", f"{counts[true].sum():,}")
        for true, given in places
        if wrong[true, given]
    ]
    return {"labels": [], "rows": [], "pairs": pairs}


def disagreements(task: Task, ours: NDArray[Any], theirs: NDArray[Any], rows: Dataset) -> dict[str, Any] | None:
    """The rows whose answers are furthest from the teacher's, the worst first, as text."""
    apart = task.differences(ours, theirs)
    if apart is None:
        return None
    decided, others = task.decisions(ours), task.decisions(theirs)
    differ = apart > 0 if decided is None or others is None else decided != others
    order = [int(row) for row in np.argsort(-apart, kind="stable") if differ[row]]
    chosen = order[:MOST_ROWS]
    picked = rows.select(chosen)
    inputs, truths = task.pipeline_inputs(picked), task.truths(picked)
    said, taught = task.told(ours[chosen]), task.told(theirs[chosen])
    entries = [
        {
            "input": _parts(given),
            "truth": shown(truths[n]) if truths else "",
            "teacher": shown(taught[n]),
            "student": shown(said[n]),
        }
        for n, given in enumerate(inputs)
    ]
    return {"entries": entries, "count": f"{len(order):,}", "of": f"{len(rows):,}", "decides": decided is not None}


def _parts(given: Any) -> list[tuple[str, str]]:
    """What a model was asked, as named texts."""
    if isinstance(given, dict):
        return [(str(name), shown(text)) for name, text in given.items() if isinstance(text, str)]
    return [("", shown(given))]
