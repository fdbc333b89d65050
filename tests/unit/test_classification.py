"""Labels of rows that people write: what train and validation say differently, what is no label, tiny validations."""

import json

import numpy as np
import pytest
from datasets import Dataset

from nlp_distill.errors import LabelsInvalid
from nlp_distill.recipe import Data
from nlp_distill.task import load_task
from nlp_distill_tasks.classification.insights import by_label, by_target
from nlp_distill_tasks.classification.labels import settle, targets


def loaded(folder, train, validation, name="validation", **data):
    """The task, and rows that were written as JSON lines."""
    for split, rows in (("train", train), (name, validation)):
        lines = [json.dumps({"text": f"text {i}", **row}) for i, row in enumerate(rows)]
        (folder / f"{split}.jsonl").write_text("\n".join(lines))
    task = load_task("classification")
    return task, task.load_data(Data(dataset=str(folder), **data))


def labels(*values):
    return [{"label": value} for value in values]


def test_a_column_of_ones_own_called_part_changes_no_score(tmp_path):
    rows = [{"label": label, "part": part} for label, part in (("a", "matched"), ("b", "x"), ("a", "x"))]
    task, data = loaded(tmp_path, rows, rows)
    raw = np.array([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
    assert task.score(raw, data["validation"])["accuracy"] == pytest.approx(200 / 3)


def test_a_second_validation_set_that_no_metric_is_for_is_scored_with_the_first(tmp_path):
    (tmp_path / "validation_mismatched.jsonl").write_text(json.dumps({"text": "more", "label": "b"}))
    task, data = loaded(tmp_path, labels("a", "b"), labels("a", "b"))
    raw = np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
    assert task.score(raw, data["validation"])["accuracy"] == pytest.approx(200 / 3)


@pytest.mark.parametrize("many", [False, True])
def test_numbers_are_names_where_train_has_texts(tmp_path, many):
    """A CSV file of numbers alone is read as numbers, one with another word as texts."""
    train, validation = ["1", "2", "3", "unknown"], [1, 3]
    if many:
        train, validation = ([[value, "unknown"] for value in train], [[value] for value in validation])
    task, data = loaded(tmp_path, labels(*train), labels(*validation))
    assert task.label_names == ["1", "2", "3", "unknown"]
    found = np.array(data["validation"]["target"][:])
    assert (found.nonzero()[1] if many else found).tolist() == [0, 2]


def test_a_number_that_is_no_name_is_refused(tmp_path):
    with pytest.raises(LabelsInvalid, match="label 0 is none of neg, pos"):
        loaded(tmp_path, labels("neg", "pos"), labels(0, 1))


@pytest.mark.parametrize(
    ("train", "validation", "said"),
    [
        ((["a"], ["b"]), (["a"], ["a", None]), r"neither a number nor a text \(first at row 1\)"),
        (("a", "b"), (["a"], ["b"]), r"\['a'\] is a list of labels, unlike"),
        ((["a"], ["b"]), ("a", "b"), "'a' is one label, unlike"),
        (([90210123], [4]), ([4],), "90210124 classes"),
    ],
)
def test_labels_of_another_kind_name_their_row(tmp_path, train, validation, said):
    with pytest.raises(LabelsInvalid, match=said):
        loaded(tmp_path, labels(*train), labels(*validation))


def test_lists_of_labels_may_come_with_a_test_set_instead_of_a_validation_set(tmp_path):
    _, data = loaded(tmp_path, labels(["a"], ["b"]), labels(["a", "b"]), name="test")
    assert data["test"]["target"][:] == [[1.0, 1.0]]


def test_the_one_label_of_a_multi_label_task_is_told_of_itself():
    target, predictions = np.array([[1], [1], [0], [0], [0]]), np.array([[1], [0], [0], [0], [1]])
    found = by_label(predictions, target, ["toxic"])
    assert found.rows == [2] and found.scores["recall"] == [50.0] and found.scores["precision"] == [50.0]


def test_two_rows_make_no_empty_group():
    found = by_target(np.array([0.5, 0.5]), np.array([0.0, 1.0]))
    assert found.rows == [1, 1]


@pytest.mark.parametrize(("names", "expected"), [(None, ["1", "2", "3"]), (["bad", "fair", "good"], None)])
def test_labels_that_begin_at_one(names, expected):
    rows = Dataset.from_dict({"text": list("abc"), "label": [3, 1, 2]})
    labels = settle(rows, "label", Data(dataset="d", label_names=names), "d")
    assert labels.names == (expected or names)
    assert targets(rows, "label", labels, "d").tolist() == [2, 0, 1]
    with pytest.raises(LabelsInvalid, match="label 4 is none of"):
        targets(Dataset.from_dict({"text": ["a"], "label": [4]}), "label", labels, "d")
