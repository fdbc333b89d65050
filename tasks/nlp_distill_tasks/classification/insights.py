"""Where a classifier is good and where it is not: by label, by size of the target, which labels are mixed up."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

from nlp_distill.task import Confusion, Groups

PARTS = 5


def by_label(predictions: NDArray[Any], target: NDArray[Any], names: list[str]) -> Groups:
    """Precision, recall and F1 of each label, in points; [rows], or [rows, labels] of 0 and 1."""
    labels = list(range(len(names)))
    if target.ndim == 2 and len(names) == 1:
        # Where there is one column, scikit-learn takes 0 and 1 for two classes.
        predictions, target, labels = predictions[:, 0], target[:, 0], [1]
    measured = precision_recall_fscore_support(target, predictions, labels=labels, zero_division=np.nan)
    scores = {
        name: [None if np.isnan(value) else 100.0 * float(value) for value in values]
        for name, values in zip(("precision", "recall", "F1"), measured[:3], strict=True)
    }
    return Groups("label", names, [int(count) for count in measured[3]], scores)


def mixed_up(predictions: NDArray[Any], target: NDArray[Any], names: list[str]) -> Confusion:
    """Rows by their label and the label that they were given."""
    counts = confusion_matrix(target, predictions, labels=list(range(len(names))))
    return Confusion(names, counts.tolist())


def by_target(predictions: NDArray[Any], target: NDArray[Any]) -> Groups:
    """Errors by fifths of the target, in its own unit; fewer groups where many rows have the same one."""
    edges = np.unique(np.quantile(target, np.linspace(0, 1, PARTS + 1)))
    place = np.searchsorted(edges[1:-1], target, side="left")
    kept = [rows for number in range(max(1, len(edges) - 1)) if (rows := place == number).any()]
    errors = predictions - target
    return Groups(
        "target",
        [f"{target[rows].min():.2f} to {target[rows].max():.2f}" for rows in kept],
        [int(rows.sum()) for rows in kept],
        {
            "mean error (unit of the target)": [float(errors[rows].mean()) for rows in kept],
            "mean absolute error (unit of the target)": [float(np.abs(errors[rows]).mean()) for rows in kept],
        },
    )
