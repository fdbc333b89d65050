"""Counts of rows give sacrebleu's corpus scores, for any sample of rows."""

import numpy as np
import pytest
import sacrebleu
from rouge_score.rouge_scorer import RougeScorer
from sacrebleu.metrics import BLEU, CHRF

from nlp_distill_tasks.seq2seq.metrics import BLEU_SIGNATURE, CHRF_SIGNATURE, scores, statistics

NAMES = {"bleu", "chrf", "rouge1", "rouge2", "rougeL"}
PREDICTIONS = [
    "the cat sat on the mat .",
    "a dog barked at night",
    "",
    "he reads books in the garden every day",
    "It's £20-25, isn't it?",
]
REFERENCES = [
    ["the cat sat on the mat .", "a cat was sitting on the mat ."],
    ["a dog barked loudly at night"],
    ["nothing was said", "silence"],
    ["he reads", "he reads a book in the garden", "every day he reads books in his garden"],
    ["Prices are £20-25, aren't they?", "It is £20-25."],
]
FIRST = [references[:1] for references in REFERENCES]


def corpus(predictions, references):
    """sacrebleu's own BLEU and chrF; it takes the i-th references of all rows together, None where there is none."""
    widest = max(map(len, references))
    streams = [[row[i] if i < len(row) else None for row in references] for i in range(widest)]
    return [metric(predictions, streams).score for metric in (sacrebleu.corpus_bleu, sacrebleu.corpus_chrf)]


@pytest.mark.parametrize("references", [FIRST, REFERENCES], ids=["one", "several"])
@pytest.mark.parametrize("rows", [[0, 1, 2, 3, 4], [1], [3, 3, 0], [0, 1, 1, 2, 4, 4], [2], [4, 2]])
def test_any_sample_of_rows_scores_as_sacrebleus_corpus(rows, references):
    found = statistics(PREDICTIONS, references)
    sample = scores({name: values[rows] for name, values in found.items()})
    expected = corpus([PREDICTIONS[row] for row in rows], [references[row] for row in rows])
    assert [sample["bleu"], sample["chrf"]] == pytest.approx(expected, abs=1e-9)


def test_samples_differ_and_more_references_score_higher():
    """The cases above would agree about a constant, too."""
    one, several = scores(statistics(PREDICTIONS, FIRST)), scores(statistics(PREDICTIONS, REFERENCES))
    assert all(0 < one[name] < several[name] < 100 for name in NAMES)


def test_one_row_of_counts_for_each_row():
    found = statistics(PREDICTIONS, REFERENCES)
    assert {name: values.shape for name, values in found.items()} == {
        "bleu": (5, 10),
        "chrf": (5, 18),
        **dict.fromkeys(("rouge1", "rouge2", "rougeL"), (5,)),
    }
    # 5 tokens; the reference has 6; of 5, 4, 3, 2 n-grams 5, 3, 1 and 0 occur in it.
    assert found["bleu"][1].tolist() == [5, 6, 5, 3, 1, 0, 5, 4, 3, 2]


@pytest.mark.parametrize("name", ["rouge1", "rouge2", "rougeL"])
def test_rouge_is_the_mean_of_each_rows_best_reference(name):
    scorer = RougeScorer([name], use_stemmer=True)
    rows = [
        max(scorer.score(target=reference, prediction=text)[name].fmeasure for reference in references)
        for text, references in zip(PREDICTIONS, REFERENCES, strict=True)
    ]
    found = statistics(PREDICTIONS, REFERENCES)
    assert found[name] == pytest.approx(rows)
    assert scores({**found, name: found[name][[3, 3, 0]]})[name] == pytest.approx(
        100 * np.mean([rows[3]] * 2 + rows[:1])
    )


def test_rouge_by_hand():
    # Stems: dog bark at night | the dog bark. Two words of 4 and of 3 match, one pair of 3 and of 2.
    found = scores(statistics(["dogs bark at night"], [["the dog barked"]]))
    assert found["rouge1"] == pytest.approx(100 * 2 * 2 / (4 + 3))
    assert found["rouge2"] == pytest.approx(100 * 2 * 1 / (3 + 2))
    assert found["rougeL"] == pytest.approx(100 * 2 * 2 / (4 + 3))


def test_an_empty_prediction_has_no_points():
    assert scores(statistics([""], [["nothing was said", "silence"]])) == dict.fromkeys(NAMES, 0.0)


def test_equal_texts_have_all_points():
    texts = ["a long enough sentence of words .", "another one that is long enough ."]
    references = [[texts[0]], ["something else", texts[1]]]
    assert scores(statistics(texts, references)) == dict.fromkeys(NAMES, pytest.approx(100.0))


def test_rows_of_both_sides_are_counted():
    with pytest.raises(ValueError, match="zip"):
        statistics(PREDICTIONS, REFERENCES[:-1])


@pytest.mark.parametrize(("metric", "signature"), [(BLEU(), BLEU_SIGNATURE), (CHRF(), CHRF_SIGNATURE)])
def test_signatures_are_sacrebleus(metric, signature):
    metric.corpus_score(["a", "b"], [["a", "b"], ["c", None]])
    assert signature == str(metric.get_signature())
