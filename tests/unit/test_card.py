"""The card: its text as a whole, its numbers, and what a hostile name can do to it."""

import json
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from huggingface_hub import ModelCard
from markdown_it import MarkdownIt

from nlp_distill.reports.card import card, escaped, hub_dataset
from nlp_distill.reports.pareto import pareto_svg
from nlp_distill.task import load_task

GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.fixture
def results():
    return json.loads((GOLDEN / "results.json").read_text(encoding="utf-8"))


@pytest.fixture
def task():
    task = load_task("classification", {})
    task.label_names = ["negative", "positive"]
    return task


TOKENIZER = SimpleNamespace(is_fast=True, model_max_length=128, mask_token="[MASK]")


def said(results, task, dataset=("nyu-mll/glue", "sst2")):
    return card(results, task, TOKENIZER, dataset)


def test_the_card_of_known_results(results, task):
    """A change of the template shows here: look at it, then write the new text into tests/golden/card.md."""
    assert said(results, task) == (GOLDEN / "card.md").read_text(encoding="utf-8")


def test_the_picture_of_known_results(results):
    assert pareto_svg(results) == (GOLDEN / "pareto.svg").read_text(encoding="utf-8")


def test_every_number_is_the_results(results, task):
    data = ModelCard(said(results, task)).data
    told = {(result.metric_name, result.metric_value) for result in data.eval_results}
    students = [variant for variant in results["variants"] if variant["name"].startswith("student")]
    assert told == {(f"{n} ({v['name']})", value) for v in students for n, value in v["score"].items()}
    assert data.eval_results[0].dataset_type == "nyu-mll/glue" and data.eval_results[0].dataset_config == "sst2"
    assert (data.license, data.base_model) == ("apache-2.0", "sentence-transformers/all-MiniLM-L6-v2")
    assert data.datasets == ["nyu-mll/glue"] and data.library_name == "transformers"


HOSTILE = "<script>alert(1)</script> [a](javascript:x) ![b](https://evil.example/c.png) | `d` **e**\n# f\n---\n"


def test_names_are_text_and_nothing_else(results, task):
    """In every text that others can choose: labels, the teacher's name, the data's source."""
    task.label_names = [HOSTILE, "other"]
    results["teacher"]["name"] = results["data"]["source"] = HOSTILE
    text = said(results, task, None)
    shown = MarkdownIt("commonmark").enable("table").render(text.split("\n---\n", 1)[1])
    assert re.findall(r"<(script|a|img|hr|em|h1)\b", shown) == ["h1", *["em"] * 2, "img"]
    assert "javascript:x" in shown
    assert yaml.safe_load(text.split("\n---\n")[0])["model-index"][0]["results"][0]["dataset"]["name"] == HOSTILE


def test_what_a_smaller_vocabulary_does_not_know_is_said(results, task):
    words = {"tokens": 11_343, "before": 30_522, "respelled": 0.0123, "rows": 0.045}
    results["student"]["vocabulary"] = words
    assert "knows 11,343 of its teacher's 30,522 pieces" in said(results, task)
    assert "1.23 % of the pieces of the reported rows, in 4.5 % of them" in said(results, task)


def test_escaping_leaves_words_alone():
    assert escaped("A plain name, v1.2 (fine)") == "A plain name, v1.2 (fine)"
    assert escaped("a_b*c") == r"a\_b\*c" and escaped("1 < 2 & 3") == "1 &lt; 2 &amp; 3"


def test_what_is_not_known_is_said(results, task):
    results["teacher"] |= {"licence": None, "base_model": None}
    text = said(results, task, None)
    data = ModelCard(text).data
    assert data.license is None and data.base_model is None and "base_model_relation" not in data.to_dict()
    assert "licence is not known" in text


def test_a_student_of_another_checkpoint_is_made_from_that(results, task):
    results["student"] = {"kind": "checkpoint", "name": "org/small", "base_model": "org/small", "licence": "mit"}
    data = ModelCard(said(results, task)).data
    assert (data.license, data.base_model) == ("mit", "org/small")


def test_an_export_that_was_refused_is_named(results, task):
    refused = results["variants"][-1]
    refused |= {"status": "refused", "score": None, "bytes": None, "params": None, "latency_ms": [], "retained": None}
    results["recommended"] = "student-onnx-fp32"
    text = said(results, task)
    assert "student-onnx-int8 was refused" in text and 'file_name="model.onnx"' in text and 'dtype: "fp32"' in text
    assert "onnx-fp32" in pareto_svg(results) and "onnx-int8" not in pareto_svg(results)


def test_without_exports_there_is_one_runtime(results, task):
    results["variants"] = [variant for variant in results["variants"] if "onnx" not in variant["name"]]
    results["recommended"] = "student"
    text = said(results, task)
    assert "from transformers import pipeline" in text and "optimum" not in text and "```js" not in text


def test_no_folder_of_somebodys_machine(results, task):
    results["data"]["source"] = "/home/jane/secret project/reviews.csv"
    text = said(results, task, None)
    assert "jane" not in text and "reviews.csv" in text


def test_datasets_of_the_hub(tmp_path, monkeypatch):
    assert hub_dataset("glue/sst2") == ("nyu-mll/glue", "sst2") and hub_dataset("org/rows") == ("org/rows", None)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data" / "mine").mkdir(parents=True)
    assert [hub_dataset(name) for name in ("data/mine", "sample:sst2", "/data/x.csv", "~/x.csv")] == [None] * 4
