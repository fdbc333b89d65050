"""The classification adapter: what differs between classification and other tasks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from datasets import Dataset, DatasetDict, concatenate_datasets
from numpy.typing import NDArray
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedTokenizerBase

from nlp_distill import Task, read_splits
from nlp_distill.errors import DataNotFound, TextInvalid
from nlp_distill.recipe import Data
from nlp_distill.task import Batch, Confusion, Groups
from nlp_distill_tasks.classification.columns import Columns, guess
from nlp_distill_tasks.classification.glue import TASKS, Glue
from nlp_distill_tasks.classification.insights import by_label, by_target, mixed_up
from nlp_distill_tasks.classification.labels import Labels, settle, targets
from nlp_distill_tasks.classification.metrics import METRICS

MATCHED = "nlp_distill: matched"
"""A column for rows of MNLI, which has two validation sets."""
OWN_METRICS = {
    "single_label": ("accuracy", "f1_macro"),
    "multi_label": ("f1_micro", "f1_macro", "accuracy"),
    "regression": ("pearson", "spearmanr"),
}
PROBLEM_TYPES = {
    "single_label": "single_label_classification",
    "multi_label": "multi_label_classification",
    "regression": "regression",
}


class Classification(Task):
    """Single-label, multi-label and regression on one or two texts."""

    name = "classification"
    auto_class = "AutoModelForSequenceClassification"
    pipeline_task = "text-classification"
    roles = ("text", "text_pair", "label")
    several = ("label",)
    any_tokenizer = True
    reads_first = True
    first_losses = "[{kind: logits}, {kind: labels, weight: 0.5}, {kind: hidden, weight: 10}, {kind: attention}]"

    glue: Glue | None = None
    used: Columns
    labels: Labels
    metrics: tuple[str, ...]
    hub: Any = None
    _examples: list[Any]

    def load_data(self, spec: Data) -> DatasetDict:
        """Checked rows with the columns `text`, `text_pair` (of pairs), `target` and `part`."""
        source = spec.files if isinstance(spec.files, str) else spec.dataset or "data.files"
        self.glue = self._glue(spec)
        raw = _with_mismatched(read_splits(spec))
        given = spec.columns
        self.check_roles(given)
        if self.glue is not None and "text" not in given:
            given = {**dict(zip(("text", "text_pair"), self.glue.columns, strict=False)), "label": "label", **given}
        self.used = guess(raw["train"], given, f"{source} train")
        if self.glue is not None and spec.label_names is None:
            spec = spec.model_copy(update={"label_names": list(self.glue.label_names)})
        if self.glue is not None and self.glue.problem == "regression":
            spec = spec.model_copy(update={"problem": "regression"})
        self.labels = settle(raw["train"], self.used.label, spec, f"{source} train")
        self.label_names = self.labels.names
        self.metrics = self.glue.metrics if self.glue else OWN_METRICS[self.labels.problem]
        self.primary_metric = self.metrics[0]
        kept = {name: rows for name, rows in raw.items() if name in ("train", "validation")}
        if "validation" not in raw and "test" in raw and not _unlabelled(raw["test"], self.used.label):
            kept["test"] = raw["test"]
        checked = DatasetDict({name: self._checked(rows, f"{source} {name}") for name, rows in kept.items()})
        self._examples = self.pipeline_inputs(checked["train"].select(range(min(4, len(checked["train"])))))
        return checked

    @staticmethod
    def _glue(spec: Data) -> Glue | None:
        if spec.dataset is None or not spec.dataset.startswith("glue/"):
            return None
        name = spec.dataset.removeprefix("glue/")
        if name not in TASKS:
            known = ", ".join(f"glue/{task}" for task in TASKS)
            raise DataNotFound(name=spec.dataset, reason="no such GLUE task", fix=f"Use one of {known}.")
        return TASKS[name]

    def _checked(self, rows: Dataset, source: str) -> Dataset:
        """The rows under our own column names; texts and labels checked, the row named."""
        guess(rows, {role: name for role, name in asdict(self.used).items() if name}, source)
        columns: dict[str, Any] = {}
        for ours, theirs in (("text", self.used.text), ("text_pair", self.used.text_pair)):
            if theirs is None:
                continue
            values = rows[theirs][:]
            for row, value in enumerate(values):
                if value is None or (isinstance(value, float) and np.isnan(value)) or str(value).strip() == "":
                    raise TextInvalid(source=source, column=theirs, reason="no text", row=row)
                if not isinstance(value, str | int | float):
                    reason = f"a {type(value).__name__}, not a text,".replace("a bytes", "bytes")
                    raise TextInvalid(source=source, column=theirs, reason=reason, row=row)
            columns[ours] = [str(value) for value in values]
        columns["target"] = targets(rows, self.used.label, self.labels, source).tolist()
        columns["matched"] = rows[MATCHED][:] if MATCHED in rows.column_names else [True] * len(rows)
        return Dataset.from_dict(columns)

    def columns(self, dataset: Dataset, given: Mapping[str, Any]) -> dict[str, Any]:
        """Which columns to use: those given, the rest guessed."""
        self.check_roles(given)
        return {role: name for role, name in asdict(guess(dataset, given, "data")).items() if name}

    def config_settings(self) -> dict[str, Any]:
        """Label names and kind for the model's config; pipelines choose their function by `problem_type`."""
        names = self.label_names
        return {
            "num_labels": len(names),
            "id2label": dict(enumerate(names)),
            "label2id": {name: number for number, name in enumerate(names)},
            "problem_type": PROBLEM_TYPES[self.labels.problem],
        }

    def features(self, dataset: Dataset, tokenizer: PreTrainedTokenizerBase, max_length: int) -> Dataset:
        """`input_ids`, `attention_mask`, `token_type_ids` where the tokenizer has them, `labels`, `example_id`."""
        pairs = [dataset["text_pair"][:]] if "text_pair" in dataset.column_names else []
        encoded = tokenizer(dataset["text"][:], *pairs, truncation=True, max_length=max_length)
        columns = {name: values for name, values in encoded.items() if name in tokenizer.model_input_names}
        return Dataset.from_dict({**columns, "labels": dataset["target"][:], "example_id": range(len(dataset))})

    def collate(
        self, tokenizer: PreTrainedTokenizerBase, config: PretrainedConfig
    ) -> Callable[[list[dict[str, Any]]], Batch]:
        """Pad to the longest row; labels are ids (int64) or numbers (float32)."""
        kind = torch.int64 if self.labels.problem == "single_label" else torch.float32

        def collate(rows: list[dict[str, Any]]) -> Batch:
            inputs = [{name: row[name] for name in tokenizer.model_input_names if name in row} for row in rows]
            batch: Batch = dict(tokenizer.pad(inputs, padding=True, return_tensors="pt"))
            batch["labels"] = torch.tensor([row["labels"] for row in rows], dtype=kind)
            batch["example_id"] = torch.tensor([row["example_id"] for row in rows])
            return batch

        return collate

    def logits(self, outputs: Any, batch: Batch) -> dict[str, Tensor]:
        """The one output, [batch, labels]."""
        return {"logits": outputs.logits}

    def label_loss(self, outputs: Any, batch: Batch) -> Tensor:
        """Sum over the batch: cross entropy, binary cross entropy (mean over labels), or squared error."""
        logits, labels = outputs.logits.float(), batch["labels"]
        if self.labels.problem == "single_label":
            return F.cross_entropy(logits, labels, reduction="sum")
        if self.labels.problem == "multi_label":
            return F.binary_cross_entropy_with_logits(logits, labels, reduction="none").mean(-1).sum()
        return F.mse_loss(logits.squeeze(-1), labels, reduction="sum")

    def term_mask(self, batch: Batch, signal: str, stack: str) -> Tensor:
        """Every example for logits and labels; every token that is not padding for the rest."""
        mask: Tensor = batch["attention_mask"].bool()
        return mask.new_ones(mask.shape[0]) if signal in ("logits", "labels") else mask

    @property
    def distribution(self) -> Literal["softmax", "sigmoid", "value"]:
        """One distribution, one for each label, or a value."""
        forms: dict[str, Literal["softmax", "sigmoid", "value"]] = {
            "single_label": "softmax",
            "multi_label": "sigmoid",
            "regression": "value",
        }
        return forms[self.labels.problem]

    def score(self, raw: NDArray[Any], dataset: Dataset) -> dict[str, float]:
        """The task's metrics, the primary one first."""
        return self.score_statistics(self.statistics(raw, dataset))

    def statistics(self, raw: NDArray[Any], dataset: Dataset) -> dict[str, NDArray[Any]]:
        """Predictions, targets, and MNLI's part of each row."""
        return {
            "predictions": self._predictions(raw),
            "target": np.array(dataset["target"][:]),
            "matched": np.array(dataset["matched"][:], dtype=bool),
        }

    def score_statistics(self, statistics: Mapping[str, NDArray[Any]]) -> dict[str, float]:
        """The metrics, on any sample of the rows."""
        target, matched, predictions = (statistics[name] for name in ("target", "matched", "predictions"))
        if not any(name.endswith("_mm") for name in self.metrics):
            matched = np.ones_like(matched)
        scores = {}
        for name in self.metrics:
            rows = ~matched if name.endswith("_mm") else matched
            compute = METRICS[name.removesuffix("_mm")]
            if rows.any():
                scores[name] = compute(predictions[rows], target[rows])
        return scores

    def _predictions(self, raw: NDArray[Any]) -> NDArray[Any]:
        if self.labels.problem == "regression":
            return raw[:, 0]
        return raw.argmax(-1) if self.labels.problem == "single_label" else (raw > 0).astype(np.int64)

    def decisions(self, raw: NDArray[Any]) -> NDArray[Any] | None:
        """The label a row gets, or its set of labels as text; none for regression."""
        if self.labels.problem == "regression":
            return None
        chosen = self._predictions(raw)
        return np.array(["".join(map(str, row)) for row in chosen]) if chosen.ndim == 2 else chosen

    def groups(self, raw: NDArray[Any], dataset: Dataset) -> Groups | None:
        """By label: precision, recall, F1; of regression by fifths of the target: errors."""
        target = np.array(dataset["target"][:])
        if self.labels.problem == "regression":
            return by_target(raw[:, 0], target)
        return by_label(self._predictions(raw), target, self.label_names)

    def confusion(self, raw: NDArray[Any], dataset: Dataset) -> Confusion | None:
        """Of single labels."""
        if self.labels.problem != "single_label":
            return None
        return mixed_up(self._predictions(raw), np.array(dataset["target"][:]), self.label_names)

    def differences(self, raw: NDArray[Any], other: NDArray[Any]) -> NDArray[Any]:
        """Total variation of the distributions; of several labels the largest difference; of values the distance."""
        ours, theirs = self._likely(raw), self._likely(other)
        apart: NDArray[Any] = np.abs(ours - theirs)
        each: NDArray[Any] = apart.sum(-1) / 2 if self.labels.problem == "single_label" else apart.max(-1)
        return each

    def _likely(self, raw: NDArray[Any]) -> NDArray[Any]:
        """Probabilities [rows, labels]; values as they are."""
        logits = torch.from_numpy(np.asarray(raw, dtype=np.float64))
        if self.labels.problem == "single_label":
            logits = logits.softmax(-1)
        elif self.labels.problem == "multi_label":
            logits = logits.sigmoid()
        likely: NDArray[Any] = logits.numpy()
        return likely

    def told(self, raw: NDArray[Any]) -> list[str]:
        """The label and how sure the model is of it, all labels that apply, or the value."""
        if self.labels.problem == "regression":
            return [f"{value:.2f}" for value in raw[:, 0]]
        likely = self._likely(raw)
        if self.labels.problem == "multi_label":
            return [self._chosen(row > 0.5) for row in likely]
        return [f"{self.label_names[row.argmax()]} ({100 * row.max():.0f} %)" for row in likely]

    def truths(self, dataset: Dataset) -> list[str]:
        """The label, all labels that apply, or the value."""
        if self.labels.problem == "regression":
            return [f"{value:.2f}" for value in dataset["target"][:]]
        if self.labels.problem == "multi_label":
            return [self._chosen(row) for row in dataset["target"][:]]
        return [self.label_names[label] for label in dataset["target"][:]]

    def _chosen(self, applies: Any) -> str:
        return ", ".join(name for name, true in zip(self.label_names, applies, strict=True) if true) or "none"

    def pipeline_inputs(self, dataset: Dataset) -> list[Any]:
        """A text, or a mapping of `text` and `text_pair`, for each row."""
        if "text_pair" not in dataset.column_names:
            return list(dataset["text"][:])
        pairs = zip(dataset["text"][:], dataset["text_pair"][:], strict=True)
        return [{"text": text, "text_pair": pair} for text, pair in pairs]

    def answers(self, pipe: Any, inputs: list[Any], batch_size: int) -> list[Any]:
        """Every label's raw score."""
        answers: list[Any] = pipe(inputs, batch_size=batch_size, top_k=None, function_to_apply="none")
        return answers

    def raw_outputs(self, answers: list[Any]) -> NDArray[np.float32]:
        """[rows, labels] from lists of every label's name and score."""
        if self.labels.problem == "regression":
            return np.array([[row[0]["score"]] for row in answers], dtype=np.float32)
        position = {name: number for number, name in enumerate(self.label_names)}
        raw = np.zeros((len(answers), len(position)), dtype=np.float32)
        for number, row in enumerate(answers):
            for entry in row:
                raw[number, position[entry["label"]]] = entry["score"]
        return raw

    def example_inputs(self) -> list[Any]:
        """The first rows of train."""
        return self._examples

    def notes(self) -> dict[str, str]:
        """Columns, labels and metrics as they were decided."""
        pair = f" and '{self.used.text_pair}'" if self.used.text_pair else ""
        shown = ", ".join(self.label_names[:6]) + (" …" if len(self.label_names) > 6 else "")
        whose = "GLUE's definition" if self.glue else "ours"
        return {
            "columns": f"text in '{self.used.text}'{pair}, label in '{self.used.label}'",
            "labels": f"{self.labels.problem.replace('_', ' ')}, {len(self.label_names)}: {shown}",
            "metrics": f"{', '.join(self.metrics)} ({whose}, computed by scikit-learn, scipy and numpy)",
        }


def _with_mismatched(raw: DatasetDict) -> DatasetDict:
    """MNLI's two validation sets as one, told apart by a column of our own."""
    if "validation_mismatched" not in raw:
        return raw
    parts = []
    for name, matched in (("validation", True), ("validation_mismatched", False)):
        parts.append(raw[name].add_column(MATCHED, [matched] * len(raw[name])))
    return DatasetDict({"train": raw["train"], "validation": concatenate_datasets(parts)})


def _unlabelled(rows: Dataset, column: str | list[str]) -> bool:
    if not isinstance(column, str):
        return False
    return column not in rows.column_names or all(value in (-1, "-1") for value in rows[column][:])
