"""Text classification as transformers' pipeline does it: one label, several, or a number."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nlp_distill.light.graphs import Graph, Row
from nlp_distill.light.tokenizing import LightTokenizer

UNSET = ""
"""`top_k` that nobody gave: the pipeline then answers in another shape than for 1."""


@dataclass(frozen=True)
class Asked:
    """One call: its rows, and how to answer."""

    rows: list[Row]
    single: bool
    as_list: bool
    function: str
    top_k: int | str | None


class LightClassifier:
    """Answers as `pipeline("text-classification")` around the same files."""

    task = "text-classification"

    def __init__(
        self, folder: Path, file: str, config: dict[str, Any], options: dict[str, Any], threads: int = 1
    ) -> None:
        # No option of the task changes its answers.
        self.tokenizer = LightTokenizer(folder, config)
        self.graph = Graph(folder, file, threads)
        names = config.get("id2label") or {str(n): f"LABEL_{n}" for n in range(config.get("num_labels", 2))}
        self.labels = [names[str(number)] for number in range(len(names))]
        self.function = _function(config.get("problem_type"), len(self.labels))

    def __call__(self, inputs: Any, **parameters: Any) -> Any:
        """What the pipeline returns for a text, a pair `{"text", "text_pair"}`, or a list of either."""
        asked = self.ask(inputs, **parameters)
        return self.answer(asked, self.graph.run(asked.rows))

    def ask(self, inputs: Any, top_k: int | str | None = UNSET, function_to_apply: str | None = None) -> Asked:
        """The rows of a call. Raises `ValueError` for a function that is not `softmax`, `sigmoid` or `none`."""
        if function_to_apply not in (None, "softmax", "sigmoid", "none"):
            raise ValueError(f"function_to_apply is '{function_to_apply}', not softmax, sigmoid or none")
        single = not isinstance(inputs, list)
        return Asked(
            rows=[self._row(entry) for entry in ([inputs] if single else inputs)],
            single=single,
            as_list=isinstance(inputs, str) and top_k == UNSET,
            function=function_to_apply or self.function,
            top_k=top_k,
        )

    def _row(self, entry: str | dict[str, str]) -> Row:
        text, pair = (entry, None) if isinstance(entry, str) else (entry["text"], entry.get("text_pair"))
        # To transformers an empty second text is none.
        encoded = self.tokenizer.encode(text, pair or None, self.tokenizer.model_max_length, "longest_first")[0]
        row = {"input_ids": np.array(encoded.ids)}
        if "token_type_ids" in self.tokenizer.names:
            row["token_type_ids"] = np.array(encoded.type_ids)
        return row

    def answer(self, asked: Asked, outputs: list[dict[str, NDArray[np.float32]]]) -> Any:
        """The graph's outputs as the pipeline tells them."""
        answers = [self._answer(asked, output["logits"][0]) for output in outputs]
        if not asked.single:
            return answers
        return [answers[0]] if asked.as_list else answers[0]

    def _answer(self, asked: Asked, logits: NDArray[np.float32]) -> Any:
        scores = _APPLY[asked.function](logits)
        if asked.top_k == UNSET:
            return {"label": self.labels[int(scores.argmax())], "score": scores.max().item()}
        named = [{"label": label, "score": score.item()} for label, score in zip(self.labels, scores, strict=True)]
        named.sort(key=lambda entry: entry["score"], reverse=True)
        return named[: int(asked.top_k)] if asked.top_k is not None else named


def _function(problem: str | None, labels: int) -> str:
    if problem == "regression":
        return "none"
    return "sigmoid" if problem == "multi_label_classification" or labels == 1 else "softmax"


def _sigmoid(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.asarray(1.0 / (1.0 + np.exp(-logits)))


def _softmax(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    shifted = np.exp(logits - np.max(logits, axis=-1, keepdims=True))
    return np.asarray(shifted / shifted.sum(axis=-1, keepdims=True))


def _none(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    return logits


_APPLY = {"softmax": _softmax, "sigmoid": _sigmoid, "none": _none}
