"""What predict is asked and answers, and which variant it chooses."""

import json
import os
import shutil
import subprocess
import sys
import threading

import pytest

from nlp_distill.asking import answers, rows_of
from nlp_distill.cli import main
from nlp_distill.errors import DataEmpty, InputInvalid, RunFolderDamaged
from nlp_distill.prediction import choose
from nlp_distill.rundir import write_json
from nlp_distill.task import load_task
from nlp_distill.testing import save_tiny

TEXTS = ["a good fine film", "the plot is awful", "superb music", "dull"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A model folder of each task."""
    root = tmp_path_factory.mktemp("models")
    kinds = {
        "classification": {},
        "question_answering": {"auto_class": "AutoModelForQuestionAnswering"},
        "masked_lm": {"auto_class": "AutoModelForMaskedLM"},
        "seq2seq": {"model_type": "t5", "auto_class": "AutoModelForSeq2SeqLM"},
    }
    return {name: save_tiny(root / name, **settings) for name, settings in kinds.items()}


@pytest.fixture
def call(capsys):
    def call(*arguments, code=0):
        with pytest.raises(SystemExit) as stopped:
            main([str(argument) for argument in arguments])
        said = capsys.readouterr()
        assert stopped.value.code == code, said.err
        return [json.loads(line) for line in said.out.splitlines()] if code == 0 else said.err

    return call


@pytest.mark.parametrize(
    ("task", "pairs"),
    [
        ("classification", [None] * 4),
        ("classification", TEXTS[::-1]),
        ("question_answering", TEXTS[::-1]),
        ("masked_lm", [None] * 4),
        ("seq2seq", [None] * 4),
    ],
)
def test_several_at_once_are_answered_like_one(folders, task, pairs):
    chosen = choose(folders[task])
    pipe = chosen.pipeline()
    texts = [text.replace("film", "[MASK]") + " [MASK]" * ("film" not in text) for text in TEXTS]
    rows = list(zip(texts if task == "masked_lm" else TEXTS, pairs, strict=True))
    alone = [chosen.task.ask(pipe, *row) for row in rows]
    done = []
    for size in (1, 3):
        said = list(answers(chosen.task, pipe, rows, size, lambda now, total: done.append((now, total))))
        assert [_shape(line["outputs"]) for line in said] == [_shape(answer) for answer in alone]
        assert done[-1] == (4, 4)
    assert said[1]["inputs"] == rows[1][0] if pairs[1] is None else {"text": rows[1][0], "text_pair": pairs[1]}


def _shape(value):
    """An answer with its numbers rounded: padding moves the last bits."""
    if isinstance(value, dict):
        return {name: _shape(child) for name, child in value.items()}
    if isinstance(value, list):
        return [_shape(child) for child in value]
    return round(value, 4) if isinstance(value, float) else value


def write(folder, name, text):
    file = folder / name
    file.write_text(text, encoding="utf-8")
    return file


def test_rows_of_files(tmp_path):
    task, answering = load_task("classification"), load_task("question_answering")
    lines = write(tmp_path, "a.txt", "one\n\n two\n")
    assert rows_of(lines, task, None, None) == [("one", None), (" two", None)]
    table = write(tmp_path, "a.csv", 'id,review,stars\n1,"good, fine",5\n2,dull,1\n')
    assert rows_of(table, task, None, None) == [("good, fine", None), ("dull", None)]
    pairs = write(tmp_path, "a.jsonl", '{"text": "a", "text_pair": "b", "more": "c"}\n')
    assert rows_of(pairs, task, None, None) == [("a", "b")]
    assert rows_of(pairs, task, "more", "text") == [("c", "a")]
    asked = write(tmp_path, "q.tsv", "context\tquestion\nJane wrote it.\tWho?\n")
    assert rows_of(asked, answering, None, None) == [("Who?", "Jane wrote it.")]


def test_rows_that_are_unclear(tmp_path):
    task = load_task("classification")
    with pytest.raises(InputInvalid, match=r"not clear which column is the text \(columns: a, b\)"):
        rows_of(write(tmp_path, "a.csv", "a,b\nx,y\n"), task, None, None)
    with pytest.raises(InputInvalid, match="no column 'c'; choose one of a, b"):
        rows_of(tmp_path / "a.csv", task, "c", None)
    with pytest.raises(InputInvalid, match="row 2 has no text in 'text'"):
        rows_of(write(tmp_path, "b.jsonl", '{"text": "a"}\n{"text": null}\n'), task, None, None)
    with pytest.raises(DataEmpty):
        rows_of(write(tmp_path, "c.txt", "\n"), task, None, None)


def test_a_file_becomes_a_file(folders, tmp_path, call):
    rows = write(tmp_path, "rows.csv", "text,label\n" + "".join(f"{text},0\n" for text in TEXTS))
    model = folders["classification"]
    assert call("predict", model, "--file", rows, "--out", tmp_path / "said.jsonl") == []
    said = [json.loads(line) for line in (tmp_path / "said.jsonl").read_text().splitlines()]
    assert [line["inputs"] for line in said] == TEXTS
    assert call("predict", model, "--file", rows) == said == call("predict", model, *TEXTS)
    assert len(call("predict", model, "--file", rows, "--batch-size", 3)) == 4
    assert not [file for file in tmp_path.iterdir() if file.name.startswith(".")]


def test_an_output_is_whole_or_not_there(folders, tmp_path, call):
    rows = write(tmp_path, "rows.txt", "a [MASK]\nno mask\n")
    message = call("predict", folders["masked_lm"], "--file", rows, "--out", tmp_path / "said.jsonl", code=2)
    assert "hides no word" in message and sorted(file.name for file in tmp_path.iterdir()) == ["rows.txt"]
    gone = call("predict", folders["masked_lm"], "a [MASK]", "--out", tmp_path / "no" / "said.jsonl", code=2)
    assert "its folder is not there" in gone


def test_arguments_that_contradict(folders, tmp_path, call):
    rows, model = write(tmp_path, "rows.txt", "a\n"), folders["classification"]
    assert "texts were given, too" in call("predict", model, "a text", "--file", rows, code=2)
    assert "no table to find it in" in call("predict", model, "a text", "--column", "text", code=2)
    assert "no such file" in call("predict", model, "--file", tmp_path / "none.csv", code=2)


@pytest.fixture
def published(tmp_path):
    """A model folder with results, as `pull` leaves it; its graphs are never loaded here."""
    folder = save_tiny(tmp_path / "model")
    (folder / "onnx").mkdir()
    for name in ("model.onnx", "model_quantized.onnx"):
        (folder / "onnx" / name).write_bytes(b"a graph")

    def recommend(name, batch=16):
        variants = [{"name": name, "settings": {"pipeline_batch": batch}}]
        write_json(folder / "results.json", {"recommended": name, "variants": variants})
        return folder

    return recommend


def test_the_recommended_variant_where_its_runtime_is_installed(published, monkeypatch):
    assert choose(published("student-onnx-fp32")).variant == "student-onnx-fp32"
    assert choose(published("student")).batch_size == 16
    assert choose(published("student-onnx-int8", batch=1)).batch_size == 1
    monkeypatch.setattr("nlp_distill.exports.format.find_spec", lambda name: None)
    assert choose(published("student-onnx-int8")).variant == "student"
    assert choose(published("student-openvino-int8")).variant == "student"


def test_results_of_strangers(published):
    folder = published("student", batch=10**9)
    assert choose(folder).batch_size == 64
    for batch in ("many", None, [], -3):
        assert choose(published("student", batch=batch)).batch_size == 1
    write_json(folder / "results.json", {"recommended": ["student"]})
    with pytest.raises(RunFolderDamaged, match="no recommended variant"):
        choose(folder)


def test_lines_are_answered_as_they_come(folders, call, monkeypatch):
    monkeypatch.setattr("sys.stdin", iter(["good\n", "\n", "bad\n"]))
    assert [line["inputs"] for line in call("predict", folders["classification"])] == ["good", "bad"]


def test_a_runs_deliverable_has_no_proven_export_before_the_last_stage(folders, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(folders["classification"], run / "model")
    (run / "model" / "onnx").mkdir()
    (run / "model" / "onnx" / "model_quantized.onnx").write_bytes(b"half")
    assert choose(run / "model").variant == "student-onnx-int8"
    (run / "recipe.yaml").write_text("task: classification")
    assert choose(run / "model").variant == choose(run).variant == "student"


def test_a_model_of_pairs_is_asked_for_pairs(folders, tmp_path, call):
    folder = tmp_path / "pairs"
    shutil.copytree(folders["classification"], folder)
    write_json(folder / "results.json", {"recommended": "student", "inputs": ["text", "text_pair"], "variants": []})
    task = load_task("classification")
    named = write(tmp_path, "a.csv", "id,sentence1,sentence2\n1,a,b\n2,c,d\n")
    assert rows_of(named, task, None, None, paired=True) == [("a", "b"), ("c", "d")]
    unclear = write(tmp_path, "b.csv", "left,right\na,b\nc,d\n")
    with pytest.raises(InputInvalid, match="--column and --pair-column"):
        rows_of(unclear, task, None, None, paired=True)
    assert "The model needs the second text, too" in call("predict", folder, "One.", code=2)
    assert call("predict", folder, "One.", "--text-pair", "Two.")


def test_a_device_is_written_into_and_stays_one(folders, tmp_path, call):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    said = []
    reader = threading.Thread(target=lambda: said.append(pipe.read_text()))
    reader.start()
    call("predict", folders["classification"], "good", "--out", pipe)
    reader.join()
    assert pipe.is_fifo() and json.loads(said[0])["inputs"] == "good"


def test_the_standard_output_may_be_named(folders):
    command = f"{sys.executable} -m nlp_distill.cli predict {folders['classification']} good --out /dev/stdout | cat"
    done = subprocess.run(["bash", "-o", "pipefail", "-c", command], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["inputs"] == "good"
