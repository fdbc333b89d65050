"""Long contexts as overlapping windows of tokens, cut exactly as the pipeline cuts them."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from typing import Any

from datasets import Dataset
from transformers import BatchEncoding, PreTrainedTokenizerBase

from nlp_distill.errors import QuestionTooLong

ROOM = 8
"""Tokens of context, at least, that a question must leave in a window."""
NOWHERE = -1
"""Place of a token that stands for nothing in another tokenizer's reading."""
SHOWN = 40
"""Characters of a question that are quoted."""


def stride_of(wanted: int, max_length: int) -> int:
    """Tokens that neighbouring windows share; never more than a quarter of a short window."""
    return min(wanted, max_length // 4)


@dataclass
class Windows:
    """Windows of some rows; positions are tokens of a window, the first of which stands for "no answer here".

    `columns`: the model's inputs, `spans` (1 where an answer may begin or end), `start`, `end`. Of each window:
    `rows`, its row; `inside`, the positions of its context; `offsets`, (begin, end) of its tokens in characters.
    `lost`: rows whose answer no window holds whole; they have none.
    """

    columns: dict[str, list[Any]]
    rows: list[int]
    inside: list[list[int]]
    offsets: list[list[tuple[int, int]]]
    lost: list[int]


def windows(rows: Dataset, tokenizer: PreTrainedTokenizerBase, max_length: int, stride: int) -> Windows:
    """Windows of the rows' contexts, each behind its question. Raises `QuestionTooLong`."""
    _check_questions(rows["question"][:], tokenizer, max_length, stride)
    encoded = tokenizer(
        rows["question"][:],
        rows["context"][:],
        truncation="only_second",
        max_length=max_length,
        stride=stride,
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
    )
    of_window, offsets = encoded["overflow_to_sample_mapping"], encoded["offset_mapping"]
    inside = [_inside(encoded, window) for window in range(len(of_window))]
    answers = [_characters(*pair) for pair in zip(rows["texts"][:], rows["starts"][:], strict=True)]
    places = [_tokens(offsets[window], inside[window], answers[row]) for window, row in enumerate(of_window)]
    held = {row for place, row in zip(places, of_window, strict=True) if place != (0, 0) or answers[row] is None}
    # Windows that all say "no answer here" of an answer that is there would teach what is wrong.
    kept = [window for window, row in enumerate(of_window) if row in held] or list(range(len(of_window)))
    columns: dict[str, list[Any]] = _inputs(encoded, tokenizer, kept)
    columns["spans"] = [_spans(len(offsets[window]), inside[window]) for window in kept]
    columns["start"], columns["end"] = ([places[window][side] for window in kept] for side in (0, 1))
    return Windows(
        columns,
        [of_window[window] for window in kept],
        [inside[window] for window in kept],
        [offsets[window] for window in kept],
        lost=sorted({*of_window} - held),
    )


def read_again(ours: Windows, rows: Dataset, tokenizer: PreTrainedTokenizerBase, max_length: int) -> dict[str, Any]:
    """Columns of the same windows as another tokenizer reads them: each question, and the text that its window shows.

    `begins` and `ends`: of each of its tokens the position in our window that holds its first character, and its
    last; `NOWHERE` outside the context. The first token stands for the first. Raises `QuestionTooLong`.
    """
    questions, contexts = rows["question"][:], rows["context"][:]
    _check_questions(questions, tokenizer, max_length, 0)
    shown = []
    for row, inside, offsets in zip(ours.rows, ours.inside, ours.offsets, strict=True):
        shown.append(contexts[row][offsets[inside[0]][0] : offsets[inside[-1]][1]] if inside else "")
    encoded = tokenizer(
        [questions[row] for row in ours.rows],
        shown,
        truncation="only_second",
        max_length=max_length,
        return_offsets_mapping=True,
    )
    columns: dict[str, list[Any]] = {"spans": [], "begins": [], "ends": []}
    for window, text in enumerate(shown):
        theirs, offsets, inside = encoded["offset_mapping"][window], ours.offsets[window], ours.inside[window]
        first = offsets[inside[0]][0] if inside else 0
        starts = [_first_letter(text, begin - first, end - first) for begin, end in (offsets[p] for p in inside)]
        begins, ends = ([0] + [NOWHERE] * (len(theirs) - 1) for _ in range(2))
        positions = _inside(encoded, window) if inside else []
        for position in positions:
            begin, end = theirs[position]
            begins[position], ends[position] = (
                inside[max(0, bisect_right(starts, letter) - 1)]
                for letter in (_first_letter(text, begin, end), max(begin, end - 1))
            )
        columns["spans"].append(_spans(len(theirs), positions))
        columns["begins"].append(begins)
        columns["ends"].append(ends)
    nothing = [0] * len(shown)
    return {**_inputs(encoded, tokenizer, range(len(shown))), **columns, "start": nothing, "end": nothing}


def _check_questions(questions: list[str], tokenizer: PreTrainedTokenizerBase, max_length: int, stride: int) -> None:
    lengths = [len(ids) for ids in tokenizer(questions)["input_ids"]]
    longest = max(range(len(lengths)), key=lengths.__getitem__)
    if lengths[longest] > max_length - stride - ROOM:
        start = questions[longest][:SHOWN].strip()
        raise QuestionTooLong(start=start, tokens=lengths[longest], max_length=max_length)


def _inputs(encoded: BatchEncoding, tokenizer: PreTrainedTokenizerBase, kept: Any) -> dict[str, list[Any]]:
    names = [name for name in tokenizer.model_input_names if name in encoded]
    return {name: [encoded[name][window] for window in kept] for name in names}


def _inside(encoded: BatchEncoding, window: int) -> list[int]:
    return [position for position, part in enumerate(encoded.sequence_ids(window)) if part == 1]


def _spans(width: int, inside: list[int]) -> list[int]:
    allowed = {0, *inside}
    return [int(position in allowed) for position in range(width)]


def _first_letter(text: str, begin: int, end: int) -> int:
    """Place of a token's first character that is no blank: byte-level tokens may begin with the blank before a word."""
    return next((place for place in range(begin, end) if not text[place].isspace()), begin)


def _characters(texts: list[str], starts: list[int]) -> tuple[int, int] | None:
    """Where the first answer begins and ends, without outer blanks; None where there is none, or it is not known where.

    No token stands for a blank at the edge of a context.
    """
    if not texts or starts[0] < 0:
        return None
    inner = texts[0].strip()
    begin = starts[0] + texts[0].find(inner)
    return begin, begin + len(inner)


def _tokens(offsets: list[tuple[int, int]], inside: list[int], answer: tuple[int, int] | None) -> tuple[int, int]:
    """First and last token of the answer's characters; (0, 0) where the window does not hold all of it."""
    if answer is None or not inside:
        return 0, 0
    first, last = answer
    if offsets[inside[0]][0] > first or offsets[inside[-1]][1] < last:
        return 0, 0
    begin = next((p for p in inside if offsets[p][1] > first), None)
    end = next((p for p in reversed(inside) if offsets[p][0] < last), None)
    return (begin, end) if begin is not None and end is not None and begin <= end else (0, 0)
