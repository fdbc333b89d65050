"""Token classification as a third party would add it: one tag a word (entities, parts of speech)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from datasets import Dataset, DatasetDict
from numpy.typing import NDArray
from torch import Tensor

from nlp_distill import Task, read_splits, require_column

IGNORED = -100


class WordTags(Task):
    """Rows with a list of `words` and a list of as many `tags`."""

    name = "word_tags"
    auto_class = "AutoModelForTokenClassification"
    pipeline_task = "token-classification"
    roles = ("words", "tags")
    offsets = True
    primary_metric = "accuracy"

    def load_data(self, spec: Any) -> DatasetDict:
        """The rows under our own names; tags as numbers."""
        raw = read_splits(spec)
        used = self.columns(raw["train"], spec.columns)
        found = {tag for row in raw["train"][used["tags"]][:] for tag in row}
        self.label_names = sorted(found, key=str)
        numbers = {tag: number for number, tag in enumerate(self.label_names)}
        made = {
            name: Dataset.from_dict(
                {
                    "words": rows[used["words"]][:],
                    "tags": [[numbers[tag] for tag in row] for row in rows[used["tags"]][:]],
                }
            )
            for name, rows in raw.items()
        }
        self._examples = self.pipeline_inputs(made["train"].select(range(2)))
        return DatasetDict(made)

    def columns(self, dataset: Dataset, given: Mapping[str, Any]) -> dict[str, Any]:
        """`words` and `tags`, unless others are named."""
        self.check_roles(given)
        chosen = {role: given.get(role, role) for role in self.roles}
        for role, name in chosen.items():
            require_column(dataset.column_names, name, role, "data")
        return chosen

    def config_settings(self) -> dict[str, Any]:
        """Names of the tags."""
        names = dict(enumerate(self.label_names))
        return {"num_labels": len(names), "id2label": names, "label2id": {tag: i for i, tag in names.items()}}

    def features(self, dataset: Dataset, tokenizer: Any, max_length: int) -> Dataset:
        """Tokens of the words; a word's first token carries its tag."""
        texts, tags = self.pipeline_inputs(dataset), dataset["tags"][:]
        encoded = tokenizer(texts, truncation=True, max_length=max_length, return_offsets_mapping=True)
        labels = []
        for text, offsets, row in zip(texts, encoded.pop("offset_mapping"), tags, strict=True):
            starts = dict(zip(_starts(text.split(" ")), row, strict=True))
            labels.append([starts.get(begin, IGNORED) if end > begin else IGNORED for begin, end in offsets])
        return Dataset.from_dict({**encoded, "labels": labels, "example_id": range(len(labels))})

    def collate(self, tokenizer: Any, config: Any) -> Callable[[list[dict[str, Any]]], dict[str, Any]]:
        """Pad to the longest."""

        def collate(rows: list[dict[str, Any]]) -> dict[str, Any]:
            inputs = [{name: row[name] for name in tokenizer.model_input_names if name in row} for row in rows]
            batch = dict(tokenizer.pad(inputs, padding=True, return_tensors="pt"))
            width = batch["input_ids"].shape[1]
            batch["labels"] = torch.tensor([row["labels"] + [IGNORED] * (width - len(row["labels"])) for row in rows])
            return batch

        return collate

    def logits(self, outputs: Any, batch: dict[str, Any]) -> dict[str, Tensor]:
        """Of every word's first token: [words, tags]."""
        return {"logits": outputs.logits[batch["labels"] != IGNORED]}

    def label_loss(self, outputs: Any, batch: dict[str, Any]) -> Tensor:
        """Sum over the words of the cross entropy."""
        words = batch["labels"] != IGNORED
        return F.cross_entropy(outputs.logits[words].float(), batch["labels"][words], reduction="sum")

    def term_mask(self, batch: dict[str, Any], signal: str, stack: str) -> Tensor:
        """Every word; of layers every token."""
        words = batch["labels"] != IGNORED
        return words[words] if signal in ("logits", "labels") else batch["attention_mask"].bool()

    def pipeline_inputs(self, dataset: Dataset) -> list[Any]:
        """The words with spaces between them."""
        return [" ".join(words) for words in dataset["words"][:]]

    def pipeline_settings(self, tokenizer: Any) -> dict[str, Any]:
        """The pipeline cuts at the model's limit by itself."""
        return {}

    def answers(self, pipe: Any, inputs: list[Any], batch_size: int) -> list[Any]:
        """The tag of each word: that of its first token."""
        found = pipe(inputs, batch_size=batch_size, ignore_labels=[])
        rows = []
        for text, tokens in zip(inputs, found, strict=True):
            tags = {token["start"]: token["entity"] for token in tokens}
            rows.append([tags.get(start) for start in _starts(text.split(" "))])
        return rows

    def raw_outputs(self, answers: list[Any]) -> NDArray[Any]:
        """A mapping with the tags of each row."""
        raw = np.empty(len(answers), dtype=object)
        raw[:] = [{"tags": row} for row in answers]
        return raw

    def statistics(self, raw: NDArray[Any], dataset: Dataset) -> dict[str, NDArray[Any]]:
        """Words of each row, and how many tags are right."""
        golden = [[self.label_names[tag] for tag in row] for row in dataset["tags"][:]]
        right = [
            sum(a == b for a, b in zip(row["tags"], tags, strict=True)) for row, tags in zip(raw, golden, strict=True)
        ]
        return {"right": np.array(right), "words": np.array([len(tags) for tags in golden])}

    def score_statistics(self, statistics: Mapping[str, NDArray[Any]]) -> dict[str, float]:
        """Share of right tags over all words."""
        return {"accuracy": 100.0 * float(statistics["right"].sum() / statistics["words"].sum())}

    def decisions(self, raw: NDArray[Any]) -> NDArray[Any]:
        """The tags of a row as one text."""
        return np.array([" ".join(map(str, row["tags"])) for row in raw], dtype=object)

    def example_inputs(self) -> list[Any]:
        """The first rows."""
        return self._examples


def _starts(words: list[str]) -> list[int]:
    """Where each word begins when spaces stand between them."""
    return [sum(len(word) + 1 for word in words[:number]) for number in range(len(words))]
