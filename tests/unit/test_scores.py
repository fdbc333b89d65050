"""Scores are of the outputs that a user gets, in the rows' order, with intervals that pair the same rows."""

import numpy as np
import pytest

from nlp_distill.exports.parity import answer_changes
from nlp_distill.prediction import variant_pipeline
from nlp_distill.recipe import Data
from nlp_distill.scores import agreement, interval, paired_interval, predict, raw_lines, read_raw
from nlp_distill.task import load_task
from nlp_distill.testing import save_tiny


@pytest.fixture(scope="module")
def scored(tiny_data):
    """The task and its 60 validation rows."""
    task = load_task("classification")
    return task, task.load_data(Data(dataset=str(tiny_data)))["validation"]


@pytest.fixture(scope="module")
def pipe(tmp_path_factory, scored):
    folder = save_tiny(tmp_path_factory.mktemp("m"), num_hidden_layers=2, **scored[0].config_settings())
    return variant_pipeline(folder, scored[0], None)


def outputs(task, rows, right):
    """Raw outputs that are right for the share `right` of the rows."""
    labels = np.asarray(rows["target"][:], dtype=int)
    wrong = np.random.default_rng(1).permutation(len(labels)) >= right * len(labels)
    return np.eye(2, dtype=np.float32)[np.where(wrong, 1 - labels, labels)]


def test_raw_outputs_are_the_models_logits_row_by_row(pipe, scored):
    import torch

    task, rows = scored
    expected = []
    for text in rows["text"][:]:
        with torch.no_grad():
            expected.append(pipe.model(**pipe.tokenizer(text, return_tensors="pt")).logits[0].numpy())
    raw = predict(pipe, task, rows)
    assert raw.shape == (len(rows), 2)
    np.testing.assert_allclose(raw, np.stack(expected), atol=1e-6)


@pytest.mark.parametrize("batch", [7, 16, 500])
def test_batches_change_neither_values_nor_order(pipe, scored, batch):
    task, rows = scored
    np.testing.assert_allclose(predict(pipe, task, rows, batch), predict(pipe, task, rows), atol=1e-6)


def test_progress_ends_at_the_total(pipe, scored, monkeypatch):
    monkeypatch.setattr("nlp_distill.scores.CHUNK_SECONDS", -1.0)
    seen = []
    predict(pipe, *scored, 16, lambda done, total: seen.append((done, total)))
    assert seen == [(16, 60), (32, 60), (48, 60), (60, 60), (60, 60)]


def test_an_interval_holds_the_score_and_repeats(scored):
    task, rows = scored
    raw = outputs(task, rows, 0.8)
    low, high = interval(task, raw, rows, seed=3)
    assert low < task.score(raw, rows)["accuracy"] == 80.0 < high
    # The normal approximation of a share of 60 rows: 80 ± 1.96·√(0.8·0.2/60).
    assert (low, high) == (pytest.approx(69.9, abs=2), pytest.approx(90.1, abs=2))
    assert interval(task, raw, rows, seed=3) == [low, high]


def test_a_perfect_score_has_no_width(scored):
    task, rows = scored
    assert interval(task, outputs(task, rows, 1.0), rows) == [100.0, 100.0]


def test_a_paired_interval_uses_the_same_rows_for_both(scored):
    """Of equal outputs the difference is exactly none, which unpaired resamples would not show."""
    task, rows = scored
    raw, worse = outputs(task, rows, 0.8), outputs(task, rows, 0.5)
    assert paired_interval(task, raw, raw.copy(), rows) == [0.0, 0.0]
    low, high = paired_interval(task, raw, worse, rows)
    assert 0 < low < 30 < high
    assert paired_interval(task, worse, raw, rows) == [-high, -low]


def test_agreement_is_a_share_of_decisions(scored):
    task, rows = scored
    right, half = outputs(task, rows, 1.0), outputs(task, rows, 0.5)
    assert agreement(task, right, right * 9) == 1.0
    assert agreement(task, right, half) == 0.5


def test_rows_that_ask_for_nothing_are_no_agreement():
    task = load_task("masked_lm")
    raw = [
        np.array([{"guesses": [*word]} for word in words], dtype=object) for words in (("a", "b", ""), ("a", "c", ""))
    ]
    assert agreement(task, *raw) == 0.5 and answer_changes(task, *raw)["flips"] == 1
    assert agreement(task, raw[0][2:], raw[1][2:]) is None


def test_a_task_without_decisions_has_no_agreement(tmp_path):
    rows = "\n".join(f'{{"text": "good film {i}", "label": {i / 7}}}' for i in range(30))
    for name in ("train", "validation"):
        (tmp_path / f"{name}.jsonl").write_text(rows + "\n")
    task = load_task("classification")
    task.load_data(Data(dataset=str(tmp_path), problem="regression"))
    assert agreement(task, np.zeros((3, 1)), np.ones((3, 1))) is None


def test_texts_are_read_back_whatever_they_hold():
    texts = np.array(["wait\x85 what", "a\u2028b\u2029c", "\x0b\x0c\x1c", "two\nlines", ""], dtype=object)
    assert read_raw(raw_lines(texts)).tolist() == texts.tolist()
    assert read_raw("").tolist() == []


@pytest.mark.parametrize("rows", [[["G", "B"], ["B", "B"]], [["G"], ["B", "B"]], [[1.5], []], [{"a": 1}, {"a": 2}]])
def test_rows_of_a_task_of_ones_own_are_read_back(rows):
    raw = np.empty(len(rows), dtype=object)
    for number, row in enumerate(rows):
        raw[number] = row
    assert read_raw(raw_lines(raw)).tolist() == rows
