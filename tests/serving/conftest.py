"""Tiny models with their exports, as runs deliver them, made once a session."""

import json
from pathlib import Path

import pytest

from nlp_distill.exports.onnx_files import dynamic_int8, export_fp32, instruction_set
from nlp_distill.recipe import Export
from nlp_distill.testing import save_tiny

HEADS = {
    "classification": ("AutoModelForSequenceClassification", "text-classification"),
    "question_answering": ("AutoModelForQuestionAnswering", "question-answering"),
    "seq2seq": ("AutoModelForSeq2SeqLM", "text2text-generation"),
}
NAMES = {0: "bad", 1: "good", 2: "so so"}
PROBLEMS = {
    "single": {"id2label": NAMES, "problem_type": "single_label_classification"},
    "multi": {"id2label": NAMES, "problem_type": "multi_label_classification"},
    "number": {"id2label": {0: "score"}, "problem_type": "regression"},
    "unsaid": {"num_labels": 3},
}


def export_tiny(folder: Path, task: str, model_type: str = "bert", int8: bool = True, options=None, **settings) -> Path:
    """A model folder with `student.json` and ONNX files."""
    auto_class, pipeline_task = HEADS[task]
    # Random weights of the usual size give logits that hardly differ.
    settings = {"initializer_range": 0.5, "num_hidden_layers": 2, **settings} if model_type == "bert" else settings
    save_tiny(folder, model_type, auto_class, **settings)
    said = {"schema": 1, "transforms": [], "task": {"name": task, "options": options or {}}}
    (folder / "student.json").write_text(json.dumps(said), encoding="utf-8")
    (folder / "onnx").mkdir()
    export_fp32(folder, pipeline_task, folder / "onnx")
    if int8:
        files = [folder / "onnx" / "model.onnx"]
        dynamic_int8(folder, files, folder / "onnx", "_quantized", instruction_set(Export()))
    return folder


@pytest.fixture(scope="session")
def classifiers(tmp_path_factory) -> dict[str, Path]:
    """A classifier of each kind."""
    root = tmp_path_factory.mktemp("classifiers")
    return {name: export_tiny(root / name, "classification", **said) for name, said in PROBLEMS.items()}


@pytest.fixture(scope="session")
def answerers(tmp_path_factory) -> dict[str, Path]:
    """Two that answer questions: one always, one that knows "no answer"."""
    root = tmp_path_factory.mktemp("answerers")
    options = {
        "v1": {"stride": 8, "max_answer_tokens": 5, "no_answer": False},
        "v2": {"stride": 128, "max_answer_tokens": 30, "no_answer": True},
    }
    return {name: export_tiny(root / name, "question_answering", options=said) for name, said in options.items()}


@pytest.fixture(scope="session")
def rewriter(tmp_path_factory) -> Path:
    """A T5 that writes something."""
    return export_tiny(tmp_path_factory.mktemp("rewriter") / "model", "seq2seq", "t5", int8=False)


@pytest.fixture(scope="session", name="export_tiny")
def export_tiny_fixture():
    """The function, for models of other kinds."""
    return export_tiny
