"""GLUE's tasks (Wang et al. 2019, arXiv:1804.07461): columns, kind of label, metrics; the primary metric first."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Problem = Literal["single_label", "multi_label", "regression"]


@dataclass(frozen=True)
class Glue:
    """One GLUE task."""

    columns: tuple[str, ...]
    label_names: tuple[str, ...]
    metrics: tuple[str, ...] = ("accuracy",)
    problem: Problem = "single_label"


ENTAILMENT = ("entailment", "not_entailment")
PARAPHRASE = ("f1", "accuracy")

TASKS = {
    "sst2": Glue(("sentence",), ("negative", "positive")),
    "cola": Glue(("sentence",), ("unacceptable", "acceptable"), ("matthews_correlation",)),
    "mrpc": Glue(("sentence1", "sentence2"), ("not_equivalent", "equivalent"), PARAPHRASE),
    "qqp": Glue(("question1", "question2"), ("not_duplicate", "duplicate"), PARAPHRASE),
    "stsb": Glue(("sentence1", "sentence2"), ("similarity",), ("spearmanr", "pearson"), "regression"),
    "mnli": Glue(("premise", "hypothesis"), ("entailment", "neutral", "contradiction"), ("accuracy", "accuracy_mm")),
    "qnli": Glue(("question", "sentence"), ENTAILMENT),
    "rte": Glue(("sentence1", "sentence2"), ENTAILMENT),
    "wnli": Glue(("sentence1", "sentence2"), ("not_entailment", "entailment")),
}
