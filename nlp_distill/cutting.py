"""The slices of a run: what is learnt from, chosen by and reported on.

Which rows are kept aside is decided by hashes of the rows' content, so it depends neither on row order nor on file
format.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from nlp_distill.errors import SelectionTooLarge, TooFewRows

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict

    from nlp_distill.recipe import Data
    from nlp_distill.task import Task

INDEX_COLUMNS = ("idx", "id", "index")
SELECTION = (0.05, 1000)
EVALUATION = (0.2, 1000)
KIN_AT_MOST = 3
"""Times as many rows as were asked for that rows of one kin may bring along."""
MINIMUM = 8
"""Rows of train below which nothing can be kept aside sensibly."""


@dataclass
class Slices:
    """The rows of a run: to learn from, to choose by, to report on."""

    train: Dataset
    selection: Dataset
    evaluation: Dataset
    split: str
    source: str
    revision: str | None
    sha256: dict[str, str]

    @property
    def rows(self) -> dict[str, int]:
        """Counts."""
        return {
            "train": len(self.train),
            "selection": len(self.selection),
            "evaluation": len(self.evaluation),
        }


def slices(datasets: DatasetDict, spec: Data, task: Task | None = None) -> Slices:
    """Cut what the data lacks, by hash, and the selection rows out of train; rows of one kin (`task`) stay together."""
    kin, held_rows = (task.kin, task.held) if task is not None else ((), lambda rows: rows)
    source = spec.dataset or (spec.files if isinstance(spec.files, str) else ", ".join((spec.files or {}).values()))
    train = datasets["train"]
    if len(train) < MINIMUM:
        raise TooFewRows(source=source, rows=len(train), minimum=MINIMUM)
    hashes = _row_hashes(train, kin)
    if "validation" in datasets:
        evaluation, split = datasets["validation"], "validation"
    elif "test" in datasets:
        evaluation, split = datasets["test"], "test"
    else:
        count = _count(len(train), *EVALUATION)
        hashes, held, kept = _cut(train, hashes, count, "evaluation", kin)
        evaluation, train = held_rows(train.select(held)), train.select(kept)
        split, hashes = f"{len(held)} rows cut from train", [hashes[i] for i in kept]
    count = spec.selection or _count(len(train), *SELECTION)
    if len(train) < 2:
        raise TooFewRows(source=source, rows=len(datasets["train"]), minimum=MINIMUM)
    if spec.selection is not None and count >= len(train):
        raise SelectionTooLarge(selection=count, rows=len(train), source=source)
    hashes, held, kept = _cut(train, hashes, count, "selection", kin)
    selection, train = held_rows(train.select(held)), train.select(kept)
    hashes = [hashes[i] for i in kept]
    if spec.limit is not None and spec.limit < len(train):
        limited, _ = _by_hash(hashes, spec.limit, "limit")
        limited = limited[: spec.limit]
        train, hashes = train.select(limited), [hashes[i] for i in limited]
    if kin:
        hashes = _row_hashes(train)
    if min(len(train), len(selection), len(evaluation)) == 0:
        raise TooFewRows(source=source, rows=len(datasets["train"]), minimum=MINIMUM)
    parts = {"train": hashes, "selection": _row_hashes(selection), "evaluation": _row_hashes(evaluation)}
    sha256 = {name: _digest(values) for name, values in parts.items()}
    return Slices(train, selection, evaluation, split, source, spec.revision, sha256)


def _count(rows: int, share: float, most: int) -> int:
    return max(1, min(round(rows * share), most))


def _row_hashes(rows: Dataset, of: Sequence[str] = ()) -> list[str]:
    """Hash of each row's content, index columns left out; `of`: of these columns alone."""
    columns = [name for name in of or rows.column_names if name not in INDEX_COLUMNS]
    lists = [rows[name][:] for name in columns]
    return [
        hashlib.sha256(json.dumps(values, ensure_ascii=False, default=str).encode()).hexdigest()
        for values in zip(*lists, strict=True)
    ]


def _cut(
    rows: Dataset, hashes: list[str], count: int, purpose: str, kin: Sequence[str]
) -> tuple[list[str], list[int], list[int]]:
    """Hashes to go on with, row numbers held and kept; so few things with so many rows each are not kept together."""
    held, kept = _by_hash(hashes, count, purpose)
    if kin and (not kept or len(held) > KIN_AT_MOST * count):
        hashes = _row_hashes(rows)
        held, kept = _by_hash(hashes, count, purpose)
    return hashes, held, kept


def _by_hash(hashes: list[str], count: int, purpose: str) -> tuple[list[int], list[int]]:
    """Row numbers held (about `count`: equal rows go together) and kept, each in row order."""
    ranks = [hashlib.sha256(f"{purpose}/{value}".encode()).hexdigest() for value in hashes]
    limit = sorted(ranks)[count - 1]
    held = [i for i, rank in enumerate(ranks) if rank <= limit]
    kept = [i for i, rank in enumerate(ranks) if rank > limit]
    return held, kept


def _digest(hashes: list[str]) -> str:
    return hashlib.sha256("".join(hashes).encode()).hexdigest()
