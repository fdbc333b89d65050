"""The code that a card shows runs as it stands, for every task, and says what our own pipeline says."""

import contextlib
import io
import json
import re

import pytest

from nlp_distill.exports.formats import FORMATS
from nlp_distill.exports.onnx_files import export_fp32
from nlp_distill.hub import PLACE
from nlp_distill.loading import load_tokenizer
from nlp_distill.prediction import choose
from nlp_distill.reports.uses import uses
from nlp_distill.task import load_task
from nlp_distill.testing import save_tiny

MODELS = {
    "classification": ({}, ["text"], {}),
    "pairs": ({}, ["text", "text_pair"], {}),
    "question_answering": ({"auto_class": "AutoModelForQuestionAnswering"}, ["question", "context"], {}),
    "masked_lm": ({"auto_class": "AutoModelForMaskedLM"}, ["text"], {}),
    "seq2seq": ({"model_type": "t5", "auto_class": "AutoModelForSeq2SeqLM"}, ["text"], {"prefix": 'say "it": '}),
}


@pytest.mark.parametrize("name", MODELS)
def test_python_code(tmp_path, name):
    settings, inputs, options = MODELS[name]
    task = load_task("classification" if name == "pairs" else name, options)
    folder = save_tiny(tmp_path / "model", **settings)
    (folder / "student.json").write_text(json.dumps({"task": {"name": task.name, "options": options}}))
    (folder / "onnx").mkdir()
    export_fp32(folder, task.pipeline_task, folder / "onnx")
    form = FORMATS["onnx"].form("exact")
    variant = {
        "name": form.variant,
        "score": {"a": 1.0},
        "bytes": 1,
        "settings": FORMATS["onnx"].settings(folder, form),
    }
    results = {"variants": [variant], "recommended": form.variant, "inputs": inputs}
    shown = uses(results, task, load_tokenizer(folder))
    assert [use["language"] for use in shown] == ["python", "python", "js"]
    said = [_run(use["code"].replace(PLACE, str(folder))) for use in shown[:2]]
    for number, runtime in enumerate(("student", form.variant)):
        chosen = choose(folder, runtime)
        ours = chosen.task.ask(chosen.pipeline(), *_typed(shown[0]["code"], name, options))
        assert _rounded(said[number]) == _rounded(repr(ours)), runtime


def _run(code):
    """What a program prints."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(code, "the card", "exec"), {})
    return printed.getvalue().strip()


def _typed(code, name, options):
    """What a user would type to ask the same."""
    texts = re.findall(r'"((?:[^"\\]|\\.)*)"', code.split("print(pipe(")[1])
    if name == "pairs":
        return texts[1], texts[3]
    if name == "question_answering":
        return texts[0], texts[1]
    return json.loads(f'"{texts[0]}"').removeprefix(options.get("prefix", "")), None


def _rounded(text):
    return re.sub(r"\d+\.\d+(e-?\d+)?", lambda found: f"{float(found[0]):.4f}", text)
