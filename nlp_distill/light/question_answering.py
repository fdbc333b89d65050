"""Extractive question answering as transformers' pipeline does it: windows, spans, whole words, no answer."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Encoding

from nlp_distill.light.graphs import Graph, Row
from nlp_distill.light.tokenizing import LightTokenizer

STRIDE, MAX_ANSWER_TOKENS = 128, 30
"""The task's defaults; a test compares them with the adapter's."""
OUTSIDE = -10000.0
"""Logit that the pipeline gives to tokens where no answer may begin or end."""
ROOM = 8
"""Special tokens of a pair, at most."""
NEVER = 1_000_000
MOST_WINDOWS = 4096
"""More than any score."""


@dataclass(frozen=True)
class Asked:
    """One call: the rows (windows) of all its questions, how many each question has, and how to answer."""

    rows: list[Row]
    windows: list[list[Encoding]]
    contexts: list[str]
    single: bool
    top_k: int
    max_answer_len: int
    handle_impossible_answer: bool
    align_to_words: bool


class LightAnswerer:
    """Answers as `pipeline("question-answering")` around the same files, made with the task's settings."""

    task = "question-answering"

    def __init__(
        self, folder: Path, file: str, config: dict[str, Any], options: dict[str, Any], threads: int = 1
    ) -> None:
        self.tokenizer = LightTokenizer(folder, config)
        self.graph = Graph(folder, file, threads)
        self.settings = answering_settings(self.tokenizer.model_max_length, options)

    def __call__(self, inputs: Any, **parameters: Any) -> Any:
        """What the pipeline returns for `{"question", "context"}` or a list of them."""
        asked = self.ask(inputs, **parameters)
        return self.answer(asked, self.graph.run(asked.rows))

    def ask(
        self,
        inputs: Any,
        *,
        top_k: int = 1,
        max_answer_len: int | None = None,
        handle_impossible_answer: bool | None = None,
        align_to_words: bool = True,
        max_seq_len: int | None = None,
        doc_stride: int | None = None,
        max_question_len: int | None = None,
    ) -> Asked:
        """The rows of a call. `max_question_len` changes nothing, as in the pipeline with a fast tokenizer.

        Raises `ValueError` for empty texts, and for a question that leaves its context no room.
        """
        own = self.settings
        length = max_seq_len or own["max_seq_len"]
        stride = own["doc_stride"] if doc_stride is None else doc_stride
        if length > self.tokenizer.model_max_length:
            raise ValueError(f"max_seq_len ({length}) is above the model's {self.tokenizer.model_max_length}")
        if stride >= length - ROOM:
            raise ValueError(f"doc_stride ({stride}) is too large for windows of {length} tokens")
        entries = inputs if isinstance(inputs, list) else [inputs]
        for entry in entries:
            for name in ("question", "context"):
                if not entry[name]:
                    raise ValueError(f"the {name} is empty")
        if sum(self._most_windows(entry, length, stride) for entry in entries) > MOST_WINDOWS:
            raise ValueError(f"the contexts may make more than {MOST_WINDOWS} windows; ask for less at once")
        windows = [self._windows(entry, length, stride) for entry in entries]
        return Asked(
            rows=[self._row(window) for several in windows for window in several],
            windows=windows,
            contexts=[entry["context"] for entry in entries],
            # Of a list of one the pipeline makes no list.
            single=len(entries) == 1,
            top_k=top_k,
            max_answer_len=max_answer_len or own["max_answer_len"],
            handle_impossible_answer=(
                own["handle_impossible_answer"] if handle_impossible_answer is None else handle_impossible_answer
            ),
            align_to_words=align_to_words,
        )

    def _most_windows(self, entry: dict[str, str], length: int, stride: int) -> int:
        """How many there are, before they are made; few letters make few tokens, which need no count."""
        room = length - stride - ROOM
        if len(entry["context"]) + 4 * len(entry["question"]) <= room:
            return 1
        # Each window goes on by what the question leaves.
        asked, context = (self.tokenizer.count(entry[name]) for name in ("question", "context"))
        return 1 + context // max(1, room - asked)

    def _windows(self, entry: dict[str, str], length: int, stride: int) -> list[Encoding]:
        # Few characters become more than four tokens, so short questions need no second look.
        if 4 * len(entry["question"]) >= length - stride - ROOM:
            self.tokenizer.check_room(entry["question"], entry["context"], length, stride)
        return self.tokenizer.encode(entry["question"], entry["context"], length, "only_second", stride)

    def _row(self, window: Encoding) -> Row:
        row = {"input_ids": np.array(window.ids)}
        if "token_type_ids" in self.tokenizer.names:
            row["token_type_ids"] = np.array(window.type_ids)
        return row

    def answer(self, asked: Asked, outputs: list[dict[str, NDArray[np.float32]]]) -> Any:
        """The graph's outputs as the pipeline tells them."""
        answers, begin = [], 0
        for windows, context in zip(asked.windows, asked.contexts, strict=True):
            answers.append(self._answer(asked, windows, context, outputs[begin : begin + len(windows)]))
            begin += len(windows)
        return answers[0] if asked.single else answers

    def _answer(self, asked: Asked, windows: list[Encoding], context: str, outputs: list[Any]) -> Any:
        least_none: float = NEVER
        answers: list[dict[str, Any]] = []
        # Some candidates vanish when they are widened to whole words.
        wanted = asked.top_k * 2 + 10 if asked.align_to_words else asked.top_k
        for window, output in zip(windows, outputs, strict=True):
            allowed = self._allowed(window)
            start, end = (_shares(output[f"{side}_logits"], allowed) for side in ("start", "end"))
            if asked.handle_impossible_answer:
                least_none = min(least_none, (start[0, 0] * end[0, 0]).item())
            start[0, 0] = end[0, 0] = 0.0
            for first, last, score in _spans(start, end, wanted, asked.max_answer_len, allowed):
                begin, stop = _characters(window, first, last, asked.align_to_words)
                _add(answers, context, begin, stop, score)
        if asked.handle_impossible_answer:
            answers.append({"score": least_none, "start": 0, "end": 0, "answer": ""})
        best = sorted(answers, key=lambda answer: answer["score"], reverse=True)[: asked.top_k]
        return best[0] if len(best) == 1 else best

    def _allowed(self, window: Encoding) -> NDArray[np.int64]:
        """[1, tokens]: 1 for tokens of the context and for the first token, which stands for no answer."""
        first = self.tokenizer.first_id
        parts = zip(window.sequence_ids, window.ids, strict=True)
        return np.array([[int(part == 1 or number == first) for part, number in parts]])


def answering_settings(model_max_length: int, options: dict[str, Any]) -> dict[str, Any]:
    """What the pipeline is made with, from the task's options; a test compares it with the adapter's."""
    return {
        "max_seq_len": model_max_length,
        "doc_stride": min(options.get("stride", STRIDE), model_max_length // 4),
        "max_answer_len": options.get("max_answer_tokens", MAX_ANSWER_TOKENS),
        "handle_impossible_answer": bool(options.get("no_answer")),
    }


def _shares(logits: NDArray[np.float32], allowed: NDArray[np.int64]) -> NDArray[np.float32]:
    masked = np.where(allowed == 0, OUTSIDE, logits)
    shares = np.exp(masked - masked.max(axis=-1, keepdims=True))
    return np.asarray(shares / shares.sum())


def _spans(
    start: NDArray[np.float32], end: NDArray[np.float32], wanted: int, longest: int, allowed: NDArray[np.int64]
) -> list[tuple[int, int, float]]:
    """The best spans of tokens, best first; ties fall as they do in the pipeline, which sorts so.

    Where there are exactly as many spans as wanted, the pipeline fails.
    """
    every = np.matmul(np.expand_dims(start, -1), np.expand_dims(end, 1))
    candidates = np.tril(np.triu(every), longest - 1)
    flat = candidates.flatten()
    if wanted == 1:
        order = np.array([np.argmax(flat)])
    elif len(flat) <= wanted:
        order = np.argsort(-flat)
    else:
        best = np.argpartition(-flat, wanted)[:wanted]
        order = best[np.argsort(-flat[best])]
    firsts, lasts = np.unravel_index(order, candidates.shape)[1:]
    inside = allowed[0].nonzero()[0]
    kept = np.isin(firsts, inside) & np.isin(lasts, inside)
    firsts, lasts = firsts[kept], lasts[kept]
    scores = candidates[0, firsts, lasts]
    return [(int(f), int(z), score.item()) for f, z, score in zip(firsts, lasts, scores, strict=True)]


def _characters(window: Encoding, first: int, last: int, whole_words: bool) -> tuple[int, int]:
    """Where a span of tokens lies in the context; whole words where the tokenizer knows words."""
    if whole_words:
        words = window.token_to_word(first), window.token_to_word(last)
        if None not in words:
            begin, end = (window.word_to_chars(word, sequence_index=1) for word in words)
            if begin is not None and end is not None:
                return begin[0], end[1]
    return window.offsets[first][0], window.offsets[last][1]


def _add(answers: list[dict[str, Any]], context: str, begin: int, stop: int, score: float) -> None:
    """One more candidate; the same words found again add to their score."""
    text = context[begin:stop]
    same = next((answer for answer in answers if answer["answer"].lower() == text.lower()), None)
    if same:
        same["score"] += score
    else:
        answers.append({"score": score, "start": begin, "end": stop, "answer": text})
