"""Long contexts as overlapping windows of tokens, cut exactly as the pipeline cuts them."""

from __future__ import annotations

from typing import Any

from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from nlp_distill.errors import TextInvalid

ROOM = 8
"""Tokens of context, at least, that a question must leave in a window."""


def stride_of(wanted: int, max_length: int) -> int:
    """Tokens that neighbouring windows share; never more than a quarter of a short window."""
    return min(wanted, max_length // 4)


def windows(rows: Dataset, tokenizer: PreTrainedTokenizerBase, max_length: int, stride: int) -> dict[str, list[Any]]:
    """Columns of windows: the model's inputs, `spans` (1 where an answer may begin or end), `start`, `end`.

    Positions are tokens of the window. The first token stands for "no answer in this window". Raises
    `TextInvalid` for a question that leaves no room for its context.
    """
    questions, contexts = rows["question"][:], rows["context"][:]
    lengths = [len(ids) for ids in tokenizer(questions)["input_ids"]]
    longest = max(range(len(lengths)), key=lengths.__getitem__)
    if lengths[longest] > max_length - stride - ROOM:
        reason = f"a question of {lengths[longest]} tokens, which max_length {max_length} leaves no room for"
        raise TextInvalid(source="data", column="question", reason=reason, row=longest)
    encoded = tokenizer(
        questions,
        contexts,
        truncation="only_second",
        max_length=max_length,
        stride=stride,
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
    )
    names = [name for name in tokenizer.model_input_names if name in encoded]
    columns: dict[str, list[Any]] = {name: encoded[name] for name in names}
    texts, starts = rows["texts"][:], rows["starts"][:]
    spans, begins, ends = [], [], []
    for window, row in enumerate(encoded["overflow_to_sample_mapping"]):
        of_context = [part == 1 for part in encoded.sequence_ids(window)]
        spans.append([int(inside or position == 0) for position, inside in enumerate(of_context)])
        answer = (starts[row][0], starts[row][0] + len(texts[row][0])) if texts[row] and starts[row][0] >= 0 else None
        begin, end = _tokens(encoded["offset_mapping"][window], of_context, answer)
        begins.append(begin)
        ends.append(end)
    return {**columns, "spans": spans, "start": begins, "end": ends}


def _tokens(offsets: list[tuple[int, int]], of_context: list[bool], answer: tuple[int, int] | None) -> tuple[int, int]:
    """First and last token of the answer's characters; (0, 0) where the window does not hold all of it."""
    inside = [position for position, context in enumerate(of_context) if context]
    if answer is None or not inside:
        return 0, 0
    first, last = answer
    if offsets[inside[0]][0] > first or offsets[inside[-1]][1] < last:
        return 0, 0
    begin = next((p for p in inside if offsets[p][1] > first), None)
    end = next((p for p in reversed(inside) if offsets[p][0] < last), None)
    return (begin, end) if begin is not None and end is not None and begin <= end else (0, 0)
