"""What `predict` is asked: rows of a file, and its answers, batch by batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nlp_distill.data import read_table
from nlp_distill.errors import InputInvalid
from nlp_distill.task import PAIRED

if TYPE_CHECKING:
    from nlp_distill.task import Task

Row = tuple[str, str | None]
USUAL = ("text", "sentence", "review", "content", "comment", "message", "body", "question", "source", "input")
PAIRS = ("text_pair", "context")
"""Roles of a second text."""


def rows_of(file: Path, task: Task, column: str | None, pair_column: str | None, paired: bool = False) -> list[Row]:
    """The rows of a CSV, TSV, JSON lines or Parquet file; of a .txt file its lines that hold something.

    Columns that are not named are those called as the task calls them, or the only one of texts. Raises
    `InputInvalid`, `DataError`.
    """
    table = read_table(file)
    names = list(table.column_names)
    if paired and not (column or pair_column):
        column, pair_column = next((both for both in PAIRED if {*both} <= {*names}), (None, None))
    second = pair_column or next((role for role in task.roles if role in PAIRS and role in names), None)
    if paired and second is None:
        reason = f"the model reads two texts, and it is not clear which columns they are in ({', '.join(names)})"
        raise InputInvalid(what=file, reason=reason, fix="name them with --column and --pair-column")
    first = column or _first(file, task, table, names)
    for name in (first, second):
        if name is not None and name not in names:
            raise InputInvalid(what=file, reason=f"it has no column '{name}'", fix=f"choose one of {', '.join(names)}")
    texts = table[first][:]
    pairs = table[second][:] if second else [None] * len(texts)
    for number, (text, pair) in enumerate(zip(texts, pairs, strict=True), 1):
        if not isinstance(text, str) or not (second is None or isinstance(pair, str)):
            place = first if not isinstance(text, str) else second
            raise InputInvalid(what=file, reason=f"row {number} has no text in '{place}'", fix="correct that row")
    return list(zip(texts, pairs, strict=True))


def _first(file: Path, task: Task, table: Any, names: list[str]) -> str:
    named = [name for name in (task.roles[0], *USUAL) if name in names]
    texts = [name for name in names if getattr(table.features[name], "dtype", "") in ("string", "large_string")]
    if not named and len(texts) != 1:
        reason = f"it is not clear which column is the text (columns: {', '.join(names)})"
        raise InputInvalid(what=file, reason=reason, fix="name it with --column")
    return (named or texts)[0]


def answers(
    task: Task, pipe: Any, rows: list[Row], batch_size: int, on_progress: Callable[[int, int], None]
) -> Iterator[dict[str, Any]]:
    """Each row's inputs and what the pipeline says of them, in order."""
    for start in range(0, len(rows), batch_size):
        batch = rows[start : start + batch_size]
        for (text, pair), outputs in zip(batch, task.ask_all(pipe, batch, batch_size), strict=True):
            inputs = text if pair is None else {"text": text, "text_pair": pair}
            yield {"inputs": inputs, "outputs": outputs}
        on_progress(min(start + batch_size, len(rows)), len(rows))
