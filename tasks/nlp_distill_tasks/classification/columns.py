"""Guess which columns hold the texts and the label of somebody's own table."""

from __future__ import annotations

import difflib
from typing import Any

from datasets import ClassLabel, Dataset, Value

from nlp_distill.errors import ColumnMissing, ColumnsUnclear
from nlp_distill.recipe import Columns

PAIRS = (
    ("sentence1", "sentence2"),
    ("premise", "hypothesis"),
    ("question1", "question2"),
    ("question", "sentence"),
    ("text", "text_pair"),
    ("text1", "text2"),
    ("sentence_a", "sentence_b"),
    ("query", "passage"),
)
TEXTS = ("text", "sentence", "review", "content", "comment_text", "comment", "tweet", "message", "body", "utterance")
LABELS = ("label", "labels", "target", "class", "category", "sentiment", "intent", "score", "rating", "y")
INDEX = ("idx", "id", "index")
FEW = 0.1
"""A column whose share of different values is below this may be a label."""


def guess(dataset: Dataset, given: Columns, source: str) -> Columns:
    """The columns given, checked, and the rest guessed. Raises `ColumnMissing`, `ColumnsUnclear`."""
    names = dataset.column_names
    for role, wanted in (("text", given.text), ("text_pair", given.text_pair), ("label", given.label)):
        for name in wanted if isinstance(wanted, list) else [wanted] if wanted else []:
            _require(name, role, names, source)
    text, text_pair = given.text, given.text_pair
    if text is None:
        text, text_pair = _texts(dataset, given, source)
    label = given.label if given.label is not None else _label(dataset, {text, text_pair}, source)
    return Columns(text=text, text_pair=text_pair, label=label)


def _require(name: str, role: str, names: list[str], source: str) -> None:
    if name not in names:
        near = difflib.get_close_matches(name, names, n=1)
        hint = f" Did you mean '{near[0]}'?" if near else ""
        raise ColumnMissing(source=source, column=name, columns=", ".join(names), role=role, hint=hint)


def _texts(dataset: Dataset, given: Columns, source: str) -> tuple[str, str | None]:
    names = {name.lower(): name for name in dataset.column_names}
    if given.text_pair is None:
        for first, second in PAIRS:
            if first in names and second in names:
                return names[first], names[second]
    strings = [name for name, feature in dataset.features.items() if _is_text(feature)]
    free = [n for n in strings if n not in (given.text_pair, given.label) and n.lower() not in INDEX]
    for name in TEXTS:
        if name in names and names[name] in free:
            return names[name], given.text_pair
    long = [name for name in free if not _few(dataset, name)] if len(free) > 1 else free
    if len(long) != 1:
        raise ColumnsUnclear(source=source, role="text", columns=", ".join(dataset.column_names))
    return str(long[0]), given.text_pair


def _label(dataset: Dataset, texts: set[str | None], source: str) -> str:
    left = [name for name in dataset.column_names if name not in texts and name.lower() not in INDEX]
    named = [name for wanted in LABELS for name in left if name.lower() == wanted]
    if named:
        return str(named[0])
    few = [name for name in left if isinstance(dataset.features[name], ClassLabel) or _few(dataset, name)]
    if len(few) != 1:
        raise ColumnsUnclear(source=source, role="label", columns=", ".join(few or left or dataset.column_names))
    return str(few[0])


def _is_text(feature: Any) -> bool:
    return isinstance(feature, Value) and feature.dtype in ("string", "large_string")


def _few(dataset: Dataset, name: str) -> bool:
    values = dataset[name][:2000]
    return not isinstance(values[0], list) and len(set(values)) <= max(2, FEW * len(values))
