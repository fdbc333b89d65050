"""What the label column means: its kind, the labels' names, and each row's target; bad labels refused by row."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from datasets import ClassLabel, Dataset, List
from numpy.typing import NDArray

from nlp_distill.errors import LabelNamesInvalid, LabelsHidden, LabelsInvalid, OneClassOnly, ProblemInvalid
from nlp_distill.recipe import Data
from nlp_distill_tasks.classification.glue import Problem

MAX_CLASSES = 1000


@dataclass(frozen=True)
class Labels:
    """Kind and names of the labels, in the order of their ids. `texts`: whether training rows name them, by texts;
    `first`: the number that stands for the first of them.
    """

    problem: Problem
    names: list[str]
    texts: bool = False
    first: int = 0


def settle(train: Dataset, column: str | list[str], spec: Data, source: str) -> Labels:
    """Kind and names, decided on the training rows. Raises `DataError`."""
    if isinstance(column, list):
        if spec.label_names and len(spec.label_names) != len(column):
            raise LabelNamesInvalid(names=len(spec.label_names), labels=len(column), source=source)
        return Labels("multi_label", spec.label_names or list(column))
    values = train[column][:]
    _refuse_missing(values, source)
    feature = train.features[column]
    several = isinstance(feature, List) or isinstance(values[0], list)
    _refuse_other_problem(several, column, spec, source)
    _refuse_odd(values, several, source)
    if several:
        _refuse_indicators(values, source)
        by_texts = any(isinstance(label, str) for row in values for label in row)
        return Labels("multi_label", _list_names(feature, values, spec, source), by_texts)
    is_float = all(isinstance(value, float) for value in values)
    if is_float and spec.problem == "auto" and all(value.is_integer() for value in values):
        raise LabelsInvalid(
            source=source,
            reason=f"labels such as {values[0]} may be classes or values",
            row=0,
            fix="set data.problem: single_label or data.problem: regression",
        )
    if spec.problem == "regression" or (is_float and spec.problem == "auto"):
        return Labels("regression", spec.label_names or [column])
    if is_float:
        whole = [i for i, value in enumerate(values) if not value.is_integer()]
        if whole:
            raise LabelsInvalid(
                source=source,
                reason=f"label {values[whole[0]]} is not a class",
                row=whole[0],
                fix="set data.problem: regression, or use whole numbers or names",
            )
    names = _class_names(feature, values, spec, source)
    by_texts = isinstance(values[0], str)
    return Labels("single_label", names, by_texts, 0 if by_texts else _first(feature, values, names))


def _first(feature: Any, values: list[Any], names: list[str]) -> int:
    """1 of stars from 1 to 5, 0 of most; where names were given, as many of them decide."""
    low, high = int(min(values)), int(max(values))
    return low if low > 0 and not isinstance(feature, ClassLabel) and len(names) == high - low + 1 else 0


def _refuse_missing(values: list[Any], source: str) -> None:
    for row, value in enumerate(values):
        if value is None or value == "" or (isinstance(value, float) and math.isnan(value)):
            raise LabelsInvalid(source=source, reason="a label is missing", row=row, fix="remove the row or fill it in")


def _refuse_other_problem(several: bool, column: str, spec: Data, source: str) -> None:
    if several and spec.problem in ("single_label", "regression"):
        raise ProblemInvalid(
            problem=spec.problem,
            column=column,
            source=source,
            found="a list of labels in each row",
            fix="leave data.problem out",
        )
    if not several and spec.problem == "multi_label":
        raise ProblemInvalid(
            problem=spec.problem,
            column=column,
            source=source,
            found="one label in each row",
            fix="set data.columns.label to several 0/1 columns, or to a column of lists",
        )


def _refuse_odd(values: list[Any], several: bool, source: str) -> None:
    for row, value in enumerate(values):
        if isinstance(value, list) != several:
            reason = f"the label {value!r} is {'one label' if several else 'a list of labels'}, unlike those of train"
            raise LabelsInvalid(source=source, reason=reason, row=row, fix="write all rows alike")
        for label in value if several else [value]:
            if not isinstance(label, str | int | float):
                reason = f"the label {label!r} is neither a number nor a text"
                raise LabelsInvalid(source=source, reason=reason, row=row, fix="write it as one")


def _refuse_many(count: int, source: str) -> None:
    if count > MAX_CLASSES:
        fix = "set data.columns.label to the column of classes, or data.problem: regression"
        raise LabelsInvalid(source=source, reason=f"{count} classes", row=0, fix=fix)


def _class_names(feature: Any, values: list[Any], spec: Data, source: str) -> list[str]:
    different = sorted(set(values))
    if different[0] == -1:
        raise LabelsHidden(source=source, count=values.count(-1), rows=len(values))
    if not isinstance(different[-1], str):
        _refuse_many(int(different[-1]) + 1, source)
    if isinstance(feature, ClassLabel):
        names = spec.label_names or list(feature.names)
    elif isinstance(different[0], str):
        names = spec.label_names or different
    else:
        names = spec.label_names or [str(i) for i in range(max(0, int(different[0])), int(different[-1]) + 1)]
    if len(different) == 1:
        raise OneClassOnly(source=source, label=different[0])
    _refuse_many(len(names), source)
    return [str(name) for name in names]


def _refuse_indicators(values: list[list[Any]], source: str) -> None:
    """Lists of 0 and 1 of one length that repeat a number are no lists of ids: those name each label once."""
    numbers = {label for row in values for label in row}
    if numbers <= {0, 1} and len({len(row) for row in values}) == 1:
        for row, members in enumerate(values):
            if len(set(members)) < len(members):
                reason = f"the list {members!r} says 0 or 1 of each label; a list of labels names those that hold"
                fix = "make each label a column of 0 and 1 (data.columns.label: [a, b, …]), or list the ids"
                raise LabelsInvalid(source=source, reason=reason, row=row, fix=fix)


def _list_names(feature: Any, values: list[list[Any]], spec: Data, source: str) -> list[str]:
    inner = getattr(feature, "feature", None)
    if spec.label_names:
        return list(spec.label_names)
    if isinstance(inner, ClassLabel):
        return list(inner.names)
    different = sorted({label for row in values for label in row})
    if different and isinstance(different[0], str):
        return [str(name) for name in different]
    if not different:
        return []
    _refuse_many(int(different[-1]) + 1, source)
    return [str(i) for i in range(int(different[-1]) + 1)]


def targets(rows: Dataset, column: str | list[str], labels: Labels, source: str) -> NDArray[Any]:
    """Targets: ids [rows], 0/1 [rows, labels] or values [rows]. Raises `LabelsInvalid`, naming the row."""
    if isinstance(column, list):
        return _many_columns(rows, column, source)
    values = rows[column][:]
    _refuse_missing(values, source)
    if labels.problem == "regression":
        if set(values) == {-1}:
            raise LabelsHidden(source=source, count=len(values), rows=len(values))
        return _numbers(values, source)
    several = labels.problem == "multi_label"
    _refuse_odd(values, several, source)
    position = {name: number for number, name in enumerate(labels.names)}
    if several:
        chosen = np.zeros((len(values), len(labels.names)), dtype=np.float32)
        for row, members in enumerate(values):
            for member in members:
                chosen[row, _id(member, position, labels, row, source)] = 1
        return chosen
    if -1 in values:
        raise LabelsHidden(source=source, count=values.count(-1), rows=len(values))
    return np.array([_id(value, position, labels, row, source) for row, value in enumerate(values)], dtype=np.int64)


def _id(value: Any, position: dict[str, int], labels: Labels, row: int, source: str) -> int:
    """A label's number. Where train names labels by texts, a number is one of them too: CSV's "1" is read as 1 where a
    file has numbers alone.
    """
    whole = not isinstance(value, str) and float(value).is_integer()
    name = str(int(value)) if labels.texts and whole else value
    if isinstance(name, str) and name in position:
        return position[name]
    if not labels.texts and whole and 0 <= int(value) - labels.first < len(position):
        return int(value) - labels.first
    raise LabelsInvalid(
        source=source,
        reason=f"label {value!r} is none of {', '.join(position)}",
        row=row,
        fix="correct the row or set data.label_names",
    )


def _numbers(values: list[Any], source: str) -> NDArray[np.float32]:
    for row, value in enumerate(values):
        if not isinstance(value, int | float) or not math.isfinite(value):
            raise LabelsInvalid(source=source, reason=f"{value!r} is not a number", row=row, fix="correct the row")
    return np.array(values, dtype=np.float32)


def _many_columns(rows: Dataset, columns: list[str], source: str) -> NDArray[np.float32]:
    table = np.array([rows[name][:] for name in columns], dtype=object).T
    wrong = [(row, value) for row, line in enumerate(table) for value in line if value not in (0, 1)]
    if wrong:
        raise LabelsInvalid(
            source=source,
            reason=f"{wrong[0][1]!r} is neither 0 nor 1",
            row=wrong[0][0],
            fix="correct the row",
        )
    return table.astype(np.float32)
