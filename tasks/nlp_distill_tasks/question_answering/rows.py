"""Questions, contexts and answers of somebody's own table, checked; answers that lie elsewhere are found again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from datasets import Dataset

from nlp_distill import require_column
from nlp_distill.errors import AnswersElsewhere, AnswersInvalid, TextInvalid

NAMES = {
    "question": ("question", "query"),
    "context": ("context", "passage", "paragraph", "document", "text"),
    "answers": ("answers", "answer"),
}
FEW = 5
"""How many row numbers a note names."""


@dataclass
class Repairs:
    """What was done to rows whose answers do not lie where they should; row numbers by kind."""

    moved: list[int] = field(default_factory=list)
    dropped: list[int] = field(default_factory=list)

    def note(self, rows: int) -> str | None:
        """One sentence, or nothing."""
        said = []
        if self.moved:
            said.append(f"{len(self.moved)} answers lay elsewhere and were found again (rows {_few(self.moved)})")
        if self.dropped:
            said.append(
                f"{len(self.dropped)} rows were left out of training, as their answers are not in the context "
                f"(rows {_few(self.dropped)})"
            )
        return f"of {rows:,} training rows {'; '.join(said)}" if said else None


def _few(rows: list[int]) -> str:
    return ", ".join(map(str, rows[:FEW])) + (" …" if len(rows) > FEW else "")


def unnested(table: Dataset) -> Dataset:
    """SQuAD's official JSON (`data`, of articles with `paragraphs` with `qas`) as rows; other tables as they are."""
    if not (len(table) == 1 and set(table.column_names) <= {"data", "version"} and "data" in table.column_names):
        return table
    made = [
        {
            "id": str(asked.get("id")),
            "title": article.get("title"),
            "context": paragraph.get("context"),
            "question": asked.get("question"),
            "answers": {
                name: [one.get(name) for one in asked.get("answers") or []] for name in ("text", "answer_start")
            },
        }
        for article in table["data"][0]
        for paragraph in article.get("paragraphs") or []
        for asked in paragraph.get("qas") or []
    ]
    return Dataset.from_list(made) if made else table


def columns(dataset: Dataset, given: Mapping[str, Any], source: str) -> dict[str, str]:
    """Role → column: those given, the rest by their usual names. Raises `ColumnMissing`."""
    names = dataset.column_names
    found: dict[str, str] = {}
    for role, usual in NAMES.items():
        chosen = given.get(role) or next((name for name in usual if name in names), usual[0])
        require_column(names, chosen, role, source)
        found[role] = chosen
    return found


def checked(dataset: Dataset, used: Mapping[str, str], source: str, repairs: Repairs | None) -> Dataset:
    """Rows with `question`, `context`, `texts` and `starts` (of each answer; empty: unanswerable).

    With `repairs` (training rows) every answer lies in its context: those that do not are found again or left
    out. Without, answers are kept as they are, since scores depend on their texts only. Raises `TextInvalid`,
    `AnswersInvalid`, `AnswersElsewhere`.
    """
    for role in NAMES:
        require_column(dataset.column_names, used[role], role, source)
    made: dict[str, list[Any]] = {"question": [], "context": [], "texts": [], "starts": []}
    chosen = (dataset[used[role]][:] for role in NAMES)
    for row, (question, context, answers) in enumerate(zip(*chosen, strict=True)):
        for role, text in (("question", question), ("context", context)):
            if not isinstance(text, str) or not text.strip():
                raise TextInvalid(source=source, column=used[role], reason="no text", row=row)
        texts, starts = _spans(answers, source, used["answers"], row)
        if repairs is not None and texts:
            texts, starts = _placed(context, texts, starts, row, repairs)
            if not texts:
                continue
        for name, value in zip(made, (question, context, texts, starts), strict=True):
            made[name].append(value)
    if not made["question"]:
        raise AnswersElsewhere(source=source, rows=len(dataset))
    return Dataset.from_dict(made)


def _spans(answers: Any, source: str, column: str, row: int) -> tuple[list[str], list[int]]:
    """Texts and offsets of the answers of a row, in SQuAD's form, one text, or a list of texts."""
    if isinstance(answers, dict) and {"text", "answer_start"} <= answers.keys():
        texts, starts = answers["text"], answers["answer_start"]
    elif answers is None or isinstance(answers, str):
        texts = [answers] if answers else []
        starts = [-1] * len(texts)
    elif isinstance(answers, list) and all(isinstance(text, str) for text in answers):
        texts, starts = answers, [-1] * len(answers)
    else:
        raise AnswersInvalid(source=source, column=column, row=row)
    if isinstance(texts, str):
        texts, starts = [texts], [starts]
    if not all(part is None or isinstance(part, list) for part in (texts, starts)):
        raise AnswersInvalid(source=source, column=column, row=row)
    # An offset that is not a number is a wrong one: the answer is found again.
    texts, starts = list(texts or []), [int(start) if _whole(start) else -1 for start in starts or []]
    if len(texts) != len(starts) or not all(isinstance(text, str) for text in texts):
        raise AnswersInvalid(source=source, column=column, row=row)
    kept = [(text, start) for text, start in zip(texts, starts, strict=True) if text.strip()]
    return [text for text, _ in kept], [start for _, start in kept]


def _whole(start: Any) -> bool:
    return isinstance(start, (int, float)) and float(start).is_integer()


def _placed(
    context: str, texts: list[str], starts: list[int], row: int, repairs: Repairs
) -> tuple[list[str], list[int]]:
    """The answers that the context holds, each at its place or at the occurrence nearest to it."""
    placed: list[tuple[str, int]] = []
    moved = False
    for text, start in zip(texts, starts, strict=True):
        if start >= 0 and context[start : start + len(text)] == text:
            placed.append((text, start))
            continue
        places = _occurrences(context, text)
        if places:
            placed.append((text, min(places, key=lambda place: abs(place - start))))
            moved = moved or start >= 0
    if not placed:
        repairs.dropped.append(row)
    elif moved:
        repairs.moved.append(row)
    return [text for text, _ in placed], [start for _, start in placed]


def _occurrences(context: str, text: str) -> list[int]:
    places, start = [], context.find(text)
    while start >= 0:
        places.append(start)
        start = context.find(text, start + 1)
    return places
