"""The adapter contract, and tasks found by entry point.

A task only answers the questions that differ between tasks; it never trains. Built-in tasks register exactly
as a third party's would: an entry point in the group ``nlp_distill.tasks`` that names a `Task` subclass. A
task's `recipes/*.yaml` and `data/NAME/` lie beside its module and are found without importing it.
"""

from __future__ import annotations

import difflib
import importlib.util
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from nlp_distill.errors import TaskUnknown

if TYPE_CHECKING:
    import numpy as np
    from datasets import Dataset, DatasetDict
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

    from nlp_distill.recipe import Columns, Data

GROUP = "nlp_distill.tasks"
Batch = dict[str, Any]


class Task(ABC):
    """What we know of a task. One instance serves one run; `load_data` settles the labels and the metric."""

    name: ClassVar[str]
    auto_class: ClassVar[str]
    """The `AutoModelFor…` class that it trains."""
    pipeline_task: ClassVar[str]
    """Name of the transformers and Optimum pipeline that serves it."""

    primary_metric: str
    """Key of `score` that selection, retention and drops are about."""
    label_names: list[str]
    """Names of the labels, in the order of their ids; for regression one name."""

    @abstractmethod
    def load_data(self, spec: Data) -> DatasetDict:
        """Checked rows: `train`, and `validation` where the data has one (else the core cuts one).

        Settles `label_names`, `primary_metric` and `config_settings`. Raises `DataError`.
        """

    @abstractmethod
    def columns(self, dataset: Dataset, given: Columns) -> Columns:
        """Which columns to use: those given, the rest guessed. Raises `ColumnMissing`, `ColumnsUnclear`."""

    @abstractmethod
    def config_settings(self) -> dict[str, Any]:
        """Settings for the model's config: `num_labels`, `id2label`, `label2id`, `problem_type`."""

    @abstractmethod
    def features(self, dataset: Dataset, tokenizer: PreTrainedTokenizerBase, max_length: int) -> Dataset:
        """Tokenised rows, unpadded: model inputs as lists, `labels`, and a stable `example_id`."""

    @abstractmethod
    def collate(self, tokenizer: PreTrainedTokenizerBase) -> Callable[[list[dict[str, Any]]], Batch]:
        """A function that pads rows of `features` to the longest of them and makes tensors."""

    @abstractmethod
    def logits(self, outputs: Any) -> dict[str, Tensor]:
        """Named outputs to distil; here each [batch, labels]. Several heads are several names."""

    @abstractmethod
    def label_loss(self, outputs: Any, batch: Batch) -> Tensor:
        """Sum over the batch of the loss on the true labels, in float32; its count is `term_mask(…, "labels")`."""

    @abstractmethod
    def term_mask(self, batch: Batch, signal: str) -> Tensor:
        """Which positions of a signal count: [batch] for `logits` and `labels`, [batch, tokens] for the rest."""

    @abstractmethod
    def score(self, raw: np.ndarray, dataset: Dataset) -> dict[str, float]:
        """Metrics in points (0–100) of raw outputs [rows, labels] against the rows' labels."""

    @abstractmethod
    def references(self, dataset: Dataset) -> dict[str, np.ndarray]:
        """What rows are scored against, as arrays [rows, …], so that a bootstrap can resample them cheaply."""

    @abstractmethod
    def score_arrays(self, raw: np.ndarray, references: dict[str, np.ndarray]) -> dict[str, float]:
        """As `score`, on any sample of rows."""

    @abstractmethod
    def decisions(self, raw: np.ndarray) -> np.ndarray | None:
        """What a user would be told, one entry a row, to compare variants by; None where there is no decision."""

    @abstractmethod
    def pipeline_inputs(self, dataset: Dataset) -> list[Any]:
        """The rows as a user would give them to the pipeline."""

    @abstractmethod
    def raw_outputs(self, answers: list[Any]) -> np.ndarray:
        """The pipeline's answers (every label, no function applied) as an array [rows, labels]."""

    @abstractmethod
    def example_inputs(self) -> list[Any]:
        """A few pipeline inputs, for the card and for trying a model."""

    @property
    @abstractmethod
    def distribution(self) -> Literal["softmax", "sigmoid", "value"]:
        """What the logits are: one distribution (single label), one for each label, or plain values (regression)."""

    def notes(self) -> dict[str, str]:
        """How things were decided (columns guessed, who computes the metric); shown and put into the results."""
        return {}


def _entry_points() -> Mapping[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=GROUP)}


def task_names() -> list[str]:
    """Names of the installed tasks."""
    return sorted(_entry_points())


def load_task(name: str) -> Task:
    """A fresh adapter of the task. Raises `TaskUnknown`."""
    points = _entry_points()
    if name not in points:
        near = difflib.get_close_matches(name, points, n=1)
        hint = f" Did you mean '{near[0]}'?" if near else ""
        raise TaskUnknown(name=name, installed=", ".join(sorted(points)) or "none", hint=hint)
    adapter: Task = points[name].load()()
    return adapter


def task_folders() -> dict[str, Path]:
    """Folder of each installed task's module, without importing the task itself."""
    folders = {}
    for name, point in sorted(_entry_points().items()):
        spec = importlib.util.find_spec(point.module)
        if spec is not None and spec.origin is not None:
            folders[name] = Path(spec.origin).parent
    return folders
