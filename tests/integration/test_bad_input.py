"""Bad input: one sentence with place and fix, exit code 2, nothing half-written; through the command line."""

import errno
import json
import os
import shutil

import pytest
import torch
from safetensors.torch import load_file

from nlp_distill.cli import main
from nlp_distill.testing import save_tiny, write_rows


@pytest.fixture
def refused(tiny_recipe, tmp_path, capsys):
    """Run a recipe that must be refused; returns the message."""

    def run(*overrides, words, verb="run", **parts):
        out = tmp_path / "out"
        path = tiny_recipe(**parts)
        arguments = [word for override in overrides for word in ("-o", override)]
        with pytest.raises(SystemExit) as stopped:
            main([verb, str(path), "--out", str(out), *arguments])
        message = capsys.readouterr().err
        assert stopped.value.code == 2, message
        for word in [words] if isinstance(words, str) else words:
            assert word in message
        assert "Traceback" not in message
        assert message.startswith("Error: ") and message.endswith("\n")
        assert not out.exists()
        return message

    return run


def fine(arguments):
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 0


def data(folder, name, text):
    folder.mkdir(exist_ok=True)
    raw = text if isinstance(text, bytes) else text.encode()
    (folder / name).write_bytes(raw)
    return {"dataset": str(folder)}


def rows(*lines):
    return "text,label\n" + "\n".join(lines) + "\n"


FINE = rows(
    "good film,1",
    "bad film,0",
    "fine plot,1",
    "awful plot,0",
    "lovely,1",
    "dull,0",
    "great,1",
    "poor,0",
    "superb,1",
    "bad,0",
)


def test_mistyped_keys_and_several_errors_at_once(refused):
    message = refused(
        "distill.epoch=3",
        "sed=1",
        "student.layers=0",
        words=["3 problems", "did you mean 'epochs'?", "did you mean 'seed'?", "student.layers"],
    )
    assert len(message.strip().split("\n")) == 4


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("distill.learning_rate=fast", "distill.learning_rate"),
        ("distill.learning_rate=2", "less than or equal to 1"),
        ("seed=-1", "seed"),
        ("max_length=2", "max_length"),
        ("student={layers: 2, model: x}", "exactly one of"),
        ("export=[{format: tflite}]", "'tflite' is not one of onnx"),
    ],
)
def test_wrong_types_and_ranges(refused, override, words):
    refused(override, words=words)


def test_a_missing_column_suggests_the_nearest(refused):
    refused(
        "data.columns={text: txt}",
        words=["has no column 'txt'", "columns: text, label", "set data.columns.text", "Did you mean 'text'?"],
    )


BAD_TABLES = {
    "one class only": (rows("a good,1", "a bad,1"), ["every row has the label 1", "at least two"]),
    "hidden labels": (rows("a,-1", "b,-1"), ["2 of 2 labels are -1", "use a split with labels"]),
    "whole floats": (rows("a,0.0", "b,1.0"), ["labels such as 0.0 may be classes or values", "data.problem"]),
    "too few rows": (rows("a,0", "b,1"), ["2 rows", "give at least 8"]),
    "float labels": (rows("a,0.5", "b,1.5"), ["label 0.5 is not a class (first at row 0)", "data.problem: regression"]),
    "missing label": (rows("a good,1", "a bad,"), ["a label is missing (first at row 1)"]),
    "NaN label": (rows("a good,1", "a bad,nan"), ["a label is missing (first at row 1)"]),
    "missing text": (rows("a good,1", " ,0"), ["column 'text' has no text at row 1"]),
    "empty": ("", ["has no rows"]),
    "header only": ("text,label\n", ["has no rows"]),
    "binary": (b"text,label\n\x00\x01\x02,1\n", ["it is binary: byte 11 is zero", "UTF-8"]),
    "other encoding": ("text,label\ncaf\xe9,1\n".encode("latin-1"), ["line 2 is not UTF-8"]),
    "torn line": ('text,label\n"a good,1\n', ["cannot be read as CSV"]),
    "too many fields": (rows("a good,1", "a,b,c,d"), ["cannot be read as CSV"]),
}


@pytest.mark.parametrize("name", BAD_TABLES)
def test_bad_tables(refused, tmp_path, name):
    text, words = BAD_TABLES[name]
    problem = {"problem": "single_label"} if name == "float labels" else {}
    refused(data={**data(tmp_path / "bad", "train.csv", text), **problem}, words=["train", *words])


def test_a_validation_label_that_train_lacks_is_named(refused, tmp_path):
    folder = tmp_path / "bad"
    data(folder, "train.csv", rows("a,yes", "b,no"))
    refused(
        data=data(folder, "validation.csv", rows("a,maybe")), words=["validation", "label 'maybe' is none of no, yes"]
    )


def test_a_torn_json_line_is_named(refused, tmp_path):
    text = '{"text": "a", "label": 1}\n{"text": "b"\n'
    refused(data=data(tmp_path / "bad", "train.jsonl", text), words=["train.jsonl", "line 2"])


def test_data_that_is_not_there(refused):
    refused("data.dataset=./nowhere", words=["'./nowhere' was not found", "Check the path"])
    refused("data.dataset=sample:sst3", words=["no such sample ships", "sample:sst2"])
    refused("data.dataset=glue/sst22", words=["no such GLUE task", "glue/sst2"])


def test_no_network_says_how_to_work_offline(refused):
    refused("data.dataset=glue/sst2", words=["glue/sst2", "data.files"])
    refused("teacher.model=some-org/some-model", words=["some-org/some-model", "To work offline", "package:NAME/path"])


def test_a_byte_order_mark_is_no_problem(tiny_recipe, tmp_path, capsys):
    parts = data(tmp_path / "bom", "train.csv", b"\xef\xbb\xbf" + FINE.encode())
    fine(["doctor", str(tiny_recipe(data=parts))])
    assert "text in 'text', label in 'label'" in capsys.readouterr().out


def test_a_teacher_with_other_labels_is_refused(refused, tmp_path):
    names = {0: "sad", 1: "happy"}
    settings = {"id2label": names, "label2id": {name: i for i, name in names.items()}}
    teacher = save_tiny(tmp_path / "teacher", **settings)
    refused(teacher={"model": str(teacher)}, words=["labels sad, happy, the data has 0, 1", "data.label_names"])


def test_a_teacher_without_a_head_needs_fine_tuning(refused, tiny_teacher):
    teacher = {"model": str(tiny_teacher), "finetune": "none"}
    refused(teacher=teacher, words=["has no text-classification head", "set teacher.finetune"])


def test_a_student_deeper_than_its_teacher(refused):
    refused("student.layers=9", words=["student.layers is 9", "has only 4; choose 1 to 4"])


def test_an_unknown_architecture(refused, tmp_path, tiny_teacher):
    folder = tmp_path / "odd"
    shutil.copytree(tiny_teacher, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "gpt2"}))
    refused(teacher={"model": str(folder)}, words=["of the type 'gpt2'", "known types: albert, bart, bert"])


def test_pickle_weights_are_never_opened(refused, tmp_path, tiny_teacher):
    folder = tmp_path / "pickled"
    shutil.copytree(tiny_teacher, folder)
    weights = load_file(folder / "model.safetensors")
    torch.save(weights, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    refused(teacher={"model": str(folder)}, words=["only pickle weights (pytorch_model.bin)", "safetensors"])


def test_terms_that_cannot_be_computed_are_refused_before_training(refused):
    refused("distill.losses=[{kind: relation, heads: 5}]", words=["5 relation heads do not divide", "common divisor"])
    refused("distill.supervise=[0, 9]", words=["the teacher has no layer 9"])


def test_a_folder_that_is_something_else_is_not_touched(tiny_recipe, tmp_path, capsys):
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "thesis.txt").write_text("dear")
    with pytest.raises(SystemExit) as stopped:
        main(["run", str(tiny_recipe()), "--out", str(folder)])
    assert stopped.value.code == 2
    assert "is not the folder of a run" in capsys.readouterr().err
    assert [path.name for path in folder.iterdir()] == ["thesis.txt"]


def test_no_space_left(tiny_recipe, tmp_path, capsys, monkeypatch):
    def full(handle):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(SystemExit) as stopped:
        main(["distill", str(tiny_recipe()), "--out", str(tmp_path / "out")])
    assert stopped.value.code == 2
    assert "no space left" in capsys.readouterr().err
    assert not list((tmp_path / "out").rglob("*.tmp"))


def test_unknown_recipes_and_runs(capsys, tmp_path):
    for arguments, words in (
        (["run", "quikstart"], "Did you mean 'quickstart'?"),
        (["run", str(tmp_path)], "not the folder of a run"),
        (["predict", str(tmp_path), "a"], "holds no model"),
    ):
        with pytest.raises(SystemExit) as stopped:
            main(arguments)
        assert stopped.value.code == 2
        assert words in capsys.readouterr().err


def test_copy_never_overwrites(capsys, tmp_path):
    target = tmp_path / "mine.yaml"
    target.write_text("mine")
    with pytest.raises(SystemExit) as stopped:
        main(["recipes", "copy", "quickstart", str(target)])
    assert stopped.value.code == 2
    assert target.read_text() == "mine"
    assert "exists already" in capsys.readouterr().err


def test_the_tiny_world_itself_is_fine(tiny_recipe, capsys, tmp_path):
    """Or every refusal above could be for another reason."""
    fine(["doctor", str(tiny_recipe())])
    assert "ready to run" in capsys.readouterr().out
    assert write_rows(tmp_path / "data").is_dir()
