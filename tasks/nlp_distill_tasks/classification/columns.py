"""Guess which columns hold the texts and the label of somebody's own table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from datasets import ClassLabel, Dataset, Value

from nlp_distill import require_column
from nlp_distill.errors import ColumnsUnclear
from nlp_distill.task import PAIRED

TEXTS = ("text", "sentence", "review", "content", "comment_text", "comment", "tweet", "message", "body", "utterance")
LABELS = ("label", "labels", "target", "class", "category", "sentiment", "intent", "score", "rating", "y")
INDEX = ("idx", "id", "index")
FEW = 0.1
"""A column whose share of different values is below this may be a label."""


@dataclass(frozen=True)
class Columns:
    """The columns in use."""

    text: str
    text_pair: str | None
    label: str | list[str]


def guess(dataset: Dataset, given: Mapping[str, Any], source: str) -> Columns:
    """The columns given, checked, and the rest guessed. Raises `ColumnMissing`, `ColumnsUnclear`."""
    for role, wanted in given.items():
        for name in wanted if isinstance(wanted, list) else [wanted]:
            require_column(dataset.column_names, name, role, source)
    text, text_pair = given.get("text"), given.get("text_pair")
    if text is None:
        text, text_pair = _texts(dataset, given, source)
    label = given.get("label") or _label(dataset, {text, text_pair}, source)
    return Columns(text=text, text_pair=text_pair, label=label)


def _texts(dataset: Dataset, given: Mapping[str, Any], source: str) -> tuple[str, str | None]:
    names = {name.lower(): name for name in dataset.column_names}
    if given.get("text_pair") is None:
        for first, second in PAIRED:
            if first in names and second in names:
                return names[first], names[second]
    strings = [name for name, feature in dataset.features.items() if _is_text(feature)]
    free = [n for n in strings if n not in (given.get("text_pair"), given.get("label")) and n.lower() not in INDEX]
    for name in TEXTS:
        if name in names and names[name] in free:
            return names[name], given.get("text_pair")
    rows = _first_rows(dataset)
    long = [name for name in free if not _few(rows, name)] if len(free) > 1 else free
    if len(long) != 1:
        raise ColumnsUnclear(source=source, role="text", columns=", ".join(dataset.column_names))
    return str(long[0]), given.get("text_pair")


def _label(dataset: Dataset, texts: set[str | None], source: str) -> str:
    left = [name for name in dataset.column_names if name not in texts and name.lower() not in INDEX]
    named = [name for wanted in LABELS for name in left if name.lower() == wanted]
    if named:
        return str(named[0])
    rows = _first_rows(dataset)
    few = [name for name in left if isinstance(dataset.features[name], ClassLabel) or _few(rows, name)]
    if len(few) != 1:
        raise ColumnsUnclear(source=source, role="label", columns=", ".join(few or left or dataset.column_names))
    return str(few[0])


def _is_text(feature: Any) -> bool:
    return isinstance(feature, Value) and feature.dtype in ("string", "large_string")


def _first_rows(dataset: Dataset) -> Any:
    """The first rows as one Arrow table: asking a `Dataset` column by column takes time by the square of columns."""
    return dataset.with_format("arrow")[:2000]


def _few(rows: Any, name: str) -> bool:
    values = rows[name].to_pylist()
    return not isinstance(values[0], list | dict) and len(set(values)) <= max(2, FEW * len(values))
