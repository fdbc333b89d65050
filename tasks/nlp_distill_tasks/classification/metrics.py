"""Metrics in points (0–100): plain functions of arrays, and the same as `evaluate.Metric` subclasses.

GLUE's definitions, computed by scikit-learn and scipy, without the Hub. A metric that is undefined (a
correlation with a constant) is 0.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


def accuracy(predictions: Array, references: Array) -> float:
    """Share of equal predictions; for several labels, of rows with all labels equal."""
    equal = predictions == references
    return 100.0 * float(np.mean(equal.all(axis=1) if equal.ndim == 2 else equal))


def f1(predictions: Array, references: Array) -> float:
    """F1 of label 1 of two."""
    return _f1_from_counts(*_counts(predictions == 1, references == 1))


def f1_macro(predictions: Array, references: Array) -> float:
    """Mean over labels of F1; labels that neither side has are left out."""
    if predictions.ndim == 2:
        columns = range(predictions.shape[1])
        pairs = [(predictions[:, i] == 1, references[:, i] == 1) for i in columns]
    else:
        pairs = [(predictions == i, references == i) for i in np.union1d(predictions, references)]
    return float(np.mean([_f1_from_counts(*_counts(p, r)) for p, r in pairs]))


def f1_micro(predictions: Array, references: Array) -> float:
    """F1 over all (row, label) pairs."""
    return _f1_from_counts(*_counts(predictions == 1, references == 1))


def matthews_correlation(predictions: Array, references: Array) -> float:
    """Matthews' correlation coefficient."""
    from sklearn.metrics import matthews_corrcoef

    return 100.0 * float(matthews_corrcoef(references, predictions))


def pearson(predictions: Array, references: Array) -> float:
    """Pearson's correlation."""
    if np.ptp(predictions) == 0 or np.ptp(references) == 0:
        return 0.0
    return 100.0 * float(np.corrcoef(predictions, references)[0, 1])


def spearmanr(predictions: Array, references: Array) -> float:
    """Spearman's rank correlation, ties averaged."""
    from scipy.stats import rankdata

    return pearson(rankdata(predictions), rankdata(references))


def _counts(predicted: Array, true: Array) -> tuple[int, int, int]:
    both = int(np.sum(predicted & true))
    return both, int(np.sum(predicted)), int(np.sum(true))


def _f1_from_counts(both: int, predicted: int, true: int) -> float:
    return 200.0 * both / (predicted + true) if predicted + true else 0.0


METRICS: dict[str, Callable[[Array, Array], float]] = {
    "accuracy": accuracy,
    "f1": f1,
    "f1_macro": f1_macro,
    "f1_micro": f1_micro,
    "matthews_correlation": matthews_correlation,
    "pearson": pearson,
    "spearmanr": spearmanr,
}


def metric(name: str, kind: str = "int64") -> Any:
    """The function of that name as an `evaluate.Metric`, for `evaluate.evaluator` and `evaluate.combine`.

    `kind`: type of predictions and references (`int64`; `float32` for correlations).
    """
    import datasets
    import evaluate

    compute = METRICS[name]

    class Points(evaluate.Metric):  # type: ignore[misc]
        """One of our metrics in points."""

        def _info(self) -> evaluate.MetricInfo:
            return evaluate.MetricInfo(
                description=compute.__doc__ or name,
                citation="",
                inputs_description="predictions, references: arrays of equal length",
                features=datasets.Features({"predictions": datasets.Value(kind), "references": datasets.Value(kind)}),
            )

        def _compute(self, predictions: Any, references: Any) -> dict[str, float]:
            return {name: compute(np.asarray(predictions), np.asarray(references))}

    return Points()
