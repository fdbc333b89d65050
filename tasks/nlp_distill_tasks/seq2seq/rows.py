"""Pairs of texts of somebody's own table, checked; rows that share a source share its references."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from datasets import Dataset

from nlp_distill import require_column
from nlp_distill.errors import ColumnsUnclear, TextInvalid

PAIRS = (
    ("source", "target"),
    ("input", "output"),
    ("input_text", "target_text"),
    ("input_text", "target"),
    ("input_text", "references"),
    ("article", "highlights"),
    ("document", "summary"),
    ("dialogue", "summary"),
    ("text", "summary"),
    ("email_body", "subject_line"),
    ("meaning_representation", "human_reference"),
    ("prompt", "response"),
)


REFERENCES = "references"
"""Role, and usual name, of a column with all the texts that are right, in rows to be scored."""


def columns(dataset: Dataset, given: Mapping[str, Any], source: str) -> dict[str, str]:
    """Role → column: those given, the rest by their usual names. Raises `ColumnMissing`, `ColumnsUnclear`."""
    names = dataset.column_names
    for role, name in given.items():
        require_column(names, name, role, source)
    if {"source", "target"} <= given.keys():
        return dict(given)
    for first, second in PAIRS:
        if first in names and second in names:
            found = {"source": first, "target": second, **given}
            if REFERENCES in names and REFERENCES not in found.values():
                found.setdefault(REFERENCES, REFERENCES)
            return found
    unclear = "target" if "source" in given else "source"
    raise ColumnsUnclear(source=source, role=unclear, columns=", ".join(names))


def checked(dataset: Dataset, used: Mapping[str, str], source: str, group: bool) -> Dataset:
    """Rows with `source`, `target` (the first reference) and `references`.

    A list of references is one row of each in training; with `group` (rows to be scored) rows of one source are
    one row with all their references, those of the column for them where it holds any. Raises `TextInvalid`.
    """
    for role in ("source", "target"):
        require_column(dataset.column_names, used[role], role, source)
    sources, targets = dataset[used["source"]][:], dataset[used["target"]][:]
    listed = dataset[used[REFERENCES]][:] if group and used.get(REFERENCES) in dataset.column_names else []
    pairs: list[tuple[str, str]] = []
    for row, (text, target) in enumerate(zip(sources, targets, strict=True)):
        role_of, target = (REFERENCES, listed[row]) if listed and listed[row] else ("target", target)
        references = list(target) if isinstance(target, list) else [target]
        for role, values in (("source", [text]), (role_of, references or [None])):
            if not all(isinstance(value, str) and value.strip() for value in values):
                raise TextInvalid(source=source, column=used[role], reason="no text", row=row)
        pairs += [(text, reference.strip()) for reference in references]
    return _of_entries(_together(pairs) if group else [(text, reference, [reference]) for text, reference in pairs])


def grouped(rows: Dataset) -> Dataset:
    """Rows to be scored, of those to learn from."""
    return _of_entries(_together(zip(rows["source"][:], rows["target"][:], strict=True)))


def _together(pairs: Iterable[tuple[str, str]]) -> list[tuple[str, str, list[str]]]:
    found: dict[str, list[str]] = {}
    for text, reference in pairs:
        found.setdefault(text, []).append(reference)
    return [(text, references[0], references) for text, references in found.items()]


def _of_entries(entries: list[tuple[str, str, list[str]]]) -> Dataset:
    made = zip(*entries, strict=True)
    return Dataset.from_dict(dict(zip(("source", "target", "references"), map(list, made), strict=True)))
