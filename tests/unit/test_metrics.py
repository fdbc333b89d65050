"""Our metrics against scikit-learn's and scipy's, as functions and as `evaluate.Metric`."""

import numpy as np
import pytest
import scipy.stats
import sklearn.metrics as theirs

from nlp_distill_tasks.classification.glue import TASKS
from nlp_distill_tasks.classification.metrics import METRICS, metric

G = np.random.default_rng(0)
BINARY = (G.integers(0, 2, 200), G.integers(0, 2, 200))
MANY = (G.integers(0, 5, 200), G.integers(0, 5, 200))
SETS = (G.integers(0, 2, (200, 4)), G.integers(0, 2, (200, 4)))
REAL = (G.normal(size=200).round(1), G.normal(size=200).round(1))


@pytest.mark.parametrize(
    ("name", "pair", "expected"),
    [
        ("accuracy", MANY, theirs.accuracy_score(*MANY[::-1])),
        ("accuracy", SETS, theirs.accuracy_score(*SETS[::-1])),
        ("f1", BINARY, theirs.f1_score(*BINARY[::-1])),
        ("f1_macro", MANY, theirs.f1_score(*MANY[::-1], average="macro")),
        ("f1_macro", SETS, theirs.f1_score(*SETS[::-1], average="macro")),
        ("f1_micro", SETS, theirs.f1_score(*SETS[::-1], average="micro")),
        ("matthews_correlation", BINARY, theirs.matthews_corrcoef(*BINARY[::-1])),
        ("pearson", REAL, scipy.stats.pearsonr(*REAL).statistic),
        ("spearmanr", REAL, scipy.stats.spearmanr(*REAL).statistic),
    ],
)
def test_points_are_a_hundred_times_the_librarys(name, pair, expected):
    assert METRICS[name](*pair) == pytest.approx(100 * expected, abs=1e-9)


@pytest.mark.parametrize("name", ["pearson", "spearmanr", "matthews_correlation", "f1"])
def test_undefined_scores_are_zero(name):
    constant = np.zeros(10, dtype=np.int64)
    assert METRICS[name](constant, np.arange(10) % 2) == 0.0


CASES = [("accuracy", "int64", MANY), ("f1", "int64", BINARY), ("spearmanr", "float32", REAL)]


@pytest.mark.parametrize(("name", "kind", "pair"), CASES)
def test_the_same_as_evaluate_metrics(name, kind, pair):
    result = metric(name, kind).compute(predictions=pair[0], references=pair[1])
    assert result == {name: pytest.approx(METRICS[name](*pair), abs=1e-3)}


def test_every_glue_metric_exists():
    for task in TASKS.values():
        assert {name.removesuffix("_mm") for name in task.metrics} <= set(METRICS)
