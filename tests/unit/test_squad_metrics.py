"""SQuAD's exact match, F1 and threshold; every expected value is worked out by hand."""

from collections import Counter

import numpy as np
import pytest
from transformers.data.metrics import squad_metrics as official

from nlp_distill_tasks.question_answering.squad import best_threshold, exact_match, f1, normalize


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The Cat", "cat"),
        ("a theatre, an anthem and another", "theatre anthem and another"),  # whole words only
        ("THE the The", ""),
        ("U.S.", "us"),
        ("A. Lincoln", "lincoln"),  # punctuation goes before articles
        ("the-end", "theend"),
        ("well-known", "wellknown"),
        ("well–known", "well–known"),  # an en dash is not in string.punctuation
        ("a_b", "ab"),
        ("$1,000.50", "100050"),
        ('"Hamlet"', "hamlet"),
        ("“Hamlet”", "“hamlet”"),
        ("“the end”", "“ end”"),  # the article becomes a space even after a quote
        ("“the”end", "“ ”end"),
        ("O'Brien’s", "obrien’s"),
        ("à la carte", "à la carte"),
        ("ÄRZTE", "ärzte"),
        ("  two\t\nwords\u00a0here ", "two words here"),
        ("?!", ""),
        ("", ""),
    ],
)
def test_normalized(text, expected):
    assert normalize(text) == expected


@pytest.mark.parametrize(
    ("prediction", "answers", "exact", "expected"),
    [
        # Articles, case and punctuation do not count.
        ("the cat", ["A cat!"], 1, 1),
        ("US", ["the U.S."], 1, 1),
        # 2·common / (words of both): 2·1 / (2 + 1).
        ("black cat", ["cat"], 0, 2 / 3),
        ("cat", ["black cat"], 0, 2 / 3),
        ("dog", ["cat"], 0, 0),
        # The best of several answers, wherever it stands.
        ("Denver", ["Denver Broncos", "Broncos", "Denver"], 1, 1),
        ("big red dog", ["fish", "blue dog", "red dog"], 0, 4 / 5),
        ("big red dog", ["red dog", "blue dog", "fish"], 0, 4 / 5),
        ("in 1999", ["the year 1999", "1999"], 0, 2 / 3),
        # Repeated words count as often as both sides have them.
        ("no no no", ["no no"], 0, 4 / 5),
        ("no", ["no no no"], 0, 1 / 2),
        ("dog cat dog", ["dog dog cat"], 0, 1),
        # Hyphens join words, other dashes and curly quotes stay.
        ("wellknown", ["well-known"], 1, 1),
        ("well known", ["well-known"], 0, 0),
        ("Hamlet", ['"Hamlet"'], 1, 1),
        ("Hamlet", ["“Hamlet”"], 0, 0),
        ("play Hamlet", ["play “Hamlet”"], 0, 1 / 2),
        # No answer.
        ("", [], 1, 1),
        ("Paris", [], 0, 0),
        ("", ["Paris"], 0, 0),
        ("the", [], 1, 1),  # nothing is left of it
        # Answers that normalise to nothing are dropped; none left is no answer.
        ("", ["the"], 1, 1),
        ("a", ["The", "..."], 1, 1),
        ("Band", ["The"], 0, 0),
        ("Band", ["The", "Band"], 1, 1),
        ("", ["The", "Band"], 0, 0),
        ("the", ["The", "Band"], 0, 0),  # v1.1 keeps "The" and finds an exact match
    ],
)
def test_prediction_scored(prediction, answers, exact, expected):
    assert exact_match(prediction, answers) == exact
    assert f1(prediction, answers) == pytest.approx(expected, abs=1e-12)


def mean_above(threshold, no_answer, score, answerable):
    """Mean score when "" is answered above the threshold."""
    return np.where(no_answer > threshold, ~answerable, score).mean()


@pytest.mark.parametrize(
    ("no_answer", "score", "answerable", "threshold", "expected"),
    [
        # Both answerable ones are answered, both others are not: (1 + 0.5 + 1 + 1) / 4.
        ([0.1, 0.2, 0.8, 0.9], [1, 0.5, 0, 0], [1, 1, 0, 0], 0.2, 3.5 / 4),
        # The same in another order.
        ([0.8, 0.2, 0.9, 0.1], [0, 0.5, 0, 1], [0, 1, 0, 1], 0.2, 3.5 / 4),
        # All answerable: everything that gains is answered.
        ([0.3, 0.1], [1, 0.5], [1, 1], 0.3, 0.75),
        # Totals by rising no_answer: 1, 0, 1, 1, 2. It pays to go through a loss.
        ([0.9, 0.1, 0.5, 0.3], [1, 0, 0, 1], [1, 0, 1, 1], 0.9, 2 / 4),
        # Totals 0, 1, 1: of equal ones the lowest threshold.
        ([0.1, 0.2], [1, 0], [1, 1], 0.1, 1 / 2),
        # Differences of logits may be negative.
        ([-3.0, -1.0], [1, 0], [1, 0], -3.0, 1),
        # Totals 1, 2.5, 1.5: the two at 0.2 (both answerable) come together.
        ([0.2, 0.2, 0.7], [1, 0.5, 0], [1, 1, 0], 0.2, 2.5 / 3),
    ],
)
def test_best_threshold(no_answer, score, answerable, threshold, expected):
    rows = np.array(no_answer), np.array(score, dtype=float), np.array(answerable, dtype=bool)
    found, best = best_threshold(*rows)
    assert found == threshold
    assert best == pytest.approx(expected, abs=1e-12)
    assert mean_above(found, *rows) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    ("no_answer", "score", "answerable", "expected"),
    [
        # All unanswerable.
        ([0.4, 0.0], [0, 0], [0, 0], 1),
        # Totals by rising no_answer: 2, 1, 1.5, 0.5, 1.5.
        ([0.9, 0.1, 0.5, 0.3], [1, 0, 0, 0.5], [1, 0, 0, 1], 2 / 4),
        # Equal values cannot be told apart: 1 of 2 whether both are answered or neither.
        ([0.5, 0.5], [1, 0], [1, 0], 1 / 2),
        ([0.5, 0.5], [0, 1], [0, 1], 1 / 2),
    ],
)
def test_threshold_below_all_where_no_answer_pays(no_answer, score, answerable, expected):
    rows = np.array(no_answer), np.array(score, dtype=float), np.array(answerable, dtype=bool)
    found, best = best_threshold(*rows)
    assert found < min(no_answer)
    assert best == pytest.approx(expected, abs=1e-12)
    assert mean_above(found, *rows) == pytest.approx(expected, abs=1e-12)


def test_no_threshold_is_better():
    random = np.random.default_rng(0)
    for rows in range(1, 40):
        answerable = random.integers(0, 2, rows).astype(bool)
        score = np.where(answerable, random.integers(0, 5, rows) / 4, 0.0)
        no_answer = random.integers(-5, 6, rows) / 10  # many are equal
        found, best = best_threshold(no_answer, score, answerable)
        every = [mean_above(t, no_answer, score, answerable) for t in (no_answer.min() - 1, *no_answer)]
        assert best == pytest.approx(max(every), abs=1e-12)
        assert mean_above(found, no_answer, score, answerable) == pytest.approx(best, abs=1e-12)


def question(name, *answers):
    return {"id": name, "question": f"{name}?", "answers": [{"text": text, "answer_start": 0} for text in answers]}


OFFICIAL = {
    "version": "v2.0",
    "data": [
        {
            "title": "Rivers",
            "paragraphs": [
                {
                    "context": "…",
                    "qas": [
                        question("source", "the Alps", "Alps", "the Swiss Alps"),
                        question("length", "1,230 km", "1,230"),
                        question("mouth", "North Sea", "the North Sea", "in the North Sea"),
                        question("bridge"),
                    ],
                },
                {
                    "context": "…",
                    "qas": [question("colour", "blue-green"), question("flood", "1953", "in February 1953")],
                },
            ],
        },
        {
            "title": "Bands",
            "paragraphs": [
                {
                    "context": "…",
                    "qas": [
                        question("name", "The The", "The Band"),
                        question("song", "“Help!”", "Help!"),
                        question("chorus", "la la la"),
                        question("drummer", "Ringo Starr"),
                        question("label"),
                        question("country", "U.K.", "the United Kingdom"),
                    ],
                },
            ],
        },
    ],
}
GIVEN = {  # id: (prediction, exact match, F1)
    "source": ("alps", 1, 1),
    "length": ("1230 kilometres", 0, 2 / 3),  # with "1230": 2·1 / (2 + 1)
    "mouth": ("the cold North Sea", 0, 4 / 5),  # with "north sea": 2·2 / (3 + 2)
    "bridge": ("", 1, 1),
    "colour": ("blue green", 0, 0),  # the answer is "bluegreen"
    "flood": ("February 1953", 0, 4 / 5),  # with "in february 1953": 2·2 / (2 + 3)
    "name": ("Band", 1, 1),  # "The The" is dropped
    "song": ("help", 1, 1),
    "chorus": ("la la", 0, 4 / 5),  # 2·2 / (2 + 3)
    "drummer": ("", 0, 0),
    "label": ("Apple Records", 0, 0),
    "country": ("UK", 1, 1),
}


def flat(official):
    """Id and answer texts of each question of SQuAD's JSON: data → paragraphs → qas → answers."""
    paragraphs = [paragraph for article in official["data"] for paragraph in article["paragraphs"]]
    asked = [qa for paragraph in paragraphs for qa in paragraph["qas"]]
    return {qa["id"]: [answer["text"] for answer in qa["answers"]] for qa in asked}


def test_a_file_in_the_official_format():
    answers = flat(OFFICIAL)
    assert answers.keys() == GIVEN.keys()
    exact = {name: exact_match(GIVEN[name][0], texts) for name, texts in answers.items()}
    words = {name: f1(GIVEN[name][0], texts) for name, texts in answers.items()}
    assert exact == {name: given[1] for name, given in GIVEN.items()}
    assert words == {name: pytest.approx(given[2], abs=1e-12) for name, given in GIVEN.items()}
    # 5 exact; F1: five of 1, three of 4/5, one of 2/3.
    assert np.mean(list(exact.values())) == pytest.approx(5 / 12)
    assert np.mean(list(words.values())) == pytest.approx((5 + 2.4 + 2 / 3) / 12)


WORDS = [
    "the",
    "The",
    "a",
    "an",
    "cat",
    "Cat!",
    "dogs",
    "U.S.",
    "us",
    "well-known",
    "–",
    "...",
    "“x”",
    "é",
    "1,230",
    ".",
]


def some_texts(chance):
    return [" ".join(chance.choice(WORDS, chance.integers(0, 4))) for _ in range(chance.integers(1, 4))]


def v1_scores(prediction, answers):
    """As the script for v1.1: the best over the answers, whatever is left of them."""

    def words_f1(answer):
        ours, theirs = normalize(prediction).split(), normalize(answer).split()
        same = sum((Counter(ours) & Counter(theirs)).values())
        return 2 * (same / len(ours)) * (same / len(theirs)) / (same / len(ours) + same / len(theirs)) if same else 0

    return max(normalize(prediction) == normalize(answer) for answer in answers), max(map(words_f1, answers))


def test_both_official_scripts_on_random_texts():
    """v2.0: transformers keeps the official functions."""
    chance = np.random.default_rng(0)
    for _ in range(2000):
        prediction, answers = some_texts(chance)[0], some_texts(chance)
        exact, words = v1_scores(prediction, answers)
        assert exact_match(prediction, answers, v1=True) == exact
        assert f1(prediction, answers, v1=True) == pytest.approx(words)
        golden = [answer for answer in answers if official.normalize_answer(answer)] or [""]
        assert normalize(prediction) == official.normalize_answer(prediction)
        assert exact_match(prediction, answers) == max(official.compute_exact(a, prediction) for a in golden)
        assert f1(prediction, answers) == pytest.approx(max(official.compute_f1(a, prediction) for a in golden))


def test_the_best_threshold_is_the_official_one_where_no_two_rows_are_equally_doubtful():
    chance = np.random.default_rng(1)
    for rows in range(2, 60):
        answerable = chance.integers(0, 2, rows).astype(bool)
        given = [chance.choice(["", "cat"]) if not known else "cat" for known in answerable]
        score = np.array(
            [chance.integers(0, 5) / 4 if k else float(not g) for k, g in zip(answerable, given, strict=True)]
        )
        doubt = chance.permutation(rows) / rows
        names = list(map(str, range(rows)))
        best, _ = official.find_best_thresh(
            dict(zip(names, given, strict=True)),
            dict(zip(names, score.tolist(), strict=True)),
            dict(zip(names, doubt.tolist(), strict=True)),
            dict(zip(names, answerable.tolist(), strict=True)),
        )
        assert 100 * best_threshold(doubt, score, answerable)[1] == pytest.approx(best)
