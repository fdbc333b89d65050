"""SQuAD's metrics, as its official evaluation scripts define them (Rajpurkar et al. 2016, 2018).

The script for v1.1 differs from that for v2.0 where nothing is left of a text after normalising: it keeps such gold
answers, and gives no F1 where both sides are empty.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

ARTICLES = re.compile(r"\b(a|an|the)\b", re.UNICODE)
PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalize(text: str) -> str:
    """Lower case, without ASCII punctuation, articles and superfluous white space, in this order."""
    return " ".join(ARTICLES.sub(" ", text.lower().translate(PUNCTUATION)).split())


def _golden(answers: Sequence[str], v1: bool) -> list[str]:
    """The answers, of v2 those that normalise to something; an unanswerable question has the answer ""."""
    return [answer for answer in answers if v1 or normalize(answer)] or [""]


def exact_match(prediction: str, answers: Sequence[str], v1: bool = False) -> float:
    """1 when the prediction is one of the answers, both normalised, else 0. No answers: it must be ""."""
    return float(any(normalize(prediction) == normalize(answer) for answer in _golden(answers, v1)))


def f1(prediction: str, answers: Sequence[str], v1: bool = False) -> float:
    """F1 of the words, each as often as it occurs, 0–1; the best over the answers."""
    # v1.1 knows no question without an answer.
    return max(_word_f1(prediction, answer, v1 and bool(answers)) for answer in _golden(answers, v1))


def _word_f1(prediction: str, answer: str, v1: bool) -> float:
    ours, theirs = normalize(prediction).split(), normalize(answer).split()
    if not ours or not theirs:
        return float(ours == theirs and not v1)
    common = (Counter(ours) & Counter(theirs)).total()
    return 2 * common / (len(ours) + len(theirs))


def best_threshold(no_answer: NDArray[Any], score: NDArray[Any], answerable: NDArray[np.bool_]) -> tuple[float, float]:
    """The threshold that gives the best mean score, and that score, 0–1.

    A question whose `no_answer` [rows] lies above the threshold is answered "". Rows of equal `no_answer` are never
    split, so that the score can be had; the official script splits them. `score` [rows]: exact match or F1
    of the answer that is given otherwise; where the question is not `answerable`, 1 if that is "", too.
    """
    order = np.argsort(no_answer, kind="stable")
    gains = np.where(answerable, score, score - 1.0)[order]
    # All "" at first; then one question after the other is answered, the least doubtful first.
    totals = np.concatenate([[0.0], np.cumsum(gains)]) + (~answerable).sum()
    ends = np.append(no_answer[order][1:] != no_answer[order][:-1], True)
    allowed = np.concatenate([[True], ends])
    best = int(np.argmax(np.where(allowed, totals, -np.inf)))
    threshold = float(no_answer[order][best - 1]) if best else float(no_answer.min()) - 1.0
    return threshold, float(totals[best] / len(order))
