"""BLEU, chrF and ROUGE from counts of each row, so that rows can be resampled without counting again.

BLEU and chrF are sacrebleu's (Post 2018), ROUGE is rouge_score's with its stemmer (Lin 2004).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from itertools import zip_longest
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sacrebleu.metrics import BLEU, CHRF

ROUGE = ("rouge1", "rouge2", "rougeL")

# `force` changes no score: it only silences a warning about texts that end in " .".
_BLEU = BLEU(tokenize="13a", smooth_method="exp", force=True)
_CHRF = CHRF(char_order=6, word_order=0, beta=2)


def statistics(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, NDArray[Any]]:
    """Arrays whose first axis is the row; every row has one reference or more.

    `bleu` [rows, 10], counts: tokens of the prediction and of the closest reference, n-grams that match (4 orders),
    n-grams in all (4). `chrf` [rows, 18], counts of the best reference: n-grams of the prediction, of the reference
    and of both, for each of 6 orders. `rouge1`, `rouge2`, `rougeL` [rows]: F1, 0–1, best over the references.
    """
    rouge = _rouge_scorer()
    # score_multi: the best reference of each measure, as rouge_score chooses it.
    rows = [rouge.score_multi(golden, text) for text, golden in zip(predictions, references, strict=True)]
    return {
        "bleu": _counts(_BLEU, predictions, references),
        "chrf": _counts(_CHRF, predictions, references),
        **{name: np.array([row[name].fmeasure for row in rows], dtype=np.float64) for name in ROUGE},
    }


def scores(statistics: Mapping[str, NDArray[Any]]) -> dict[str, float]:
    """All metrics in points (0–100) of any sample of rows: BLEU and chrF of the corpus, ROUGE as a mean."""
    return {
        "bleu": _corpus_points(_BLEU, statistics["bleu"]),
        "chrf": _corpus_points(_CHRF, statistics["chrf"]),
        **{name: 100.0 * float(statistics[name].mean()) for name in ROUGE},
    }


@cache
def _rouge_scorer() -> Any:
    """Imported late: rouge_score brings nltk, seconds of import."""
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(list(ROUGE), use_stemmer=True)


def _counts(metric: Any, predictions: Sequence[str], references: Sequence[Sequence[str]]) -> NDArray[np.int64]:
    """What `metric.corpus_score` sums, [rows, counts]; sacrebleu has no public name for it."""
    streams = list(zip_longest(*references))  # the i-th reference of every row, None where a row has fewer
    return np.array(metric._extract_corpus_statistics(predictions, streams), dtype=np.int64)


def _corpus_points(metric: Any, counts: NDArray[Any]) -> float:
    """Points (0–100) as `metric.corpus_score` computes them, from counts [rows, counts]."""
    # Summed here: sacrebleu's own sum is a loop over rows, slow for a thousand samples of them.
    return float(metric._aggregate_and_compute([counts.sum(axis=0).tolist()]).score)


def _signature(metric: Any) -> str:
    """As sacrebleu writes it, its version included, for any number of references (`nrefs:var`)."""
    metric.num_refs = -1  # sacrebleu's mark for a number that varies; it is known only after counting
    return str(metric.get_signature())


BLEU_SIGNATURE = _signature(_BLEU)
CHRF_SIGNATURE = _signature(_CHRF)
ROUGE_SIGNATURE = "rouge_score, lower case, letters a–z and digits only, stemmed, best reference"
