"""Without torch the answers are those of Optimum's pipeline, digit for digit."""

import io
import json
import random
import shutil
import subprocess
import sys
import warnings
from types import SimpleNamespace

import numpy as np
import onnx
import pytest

from nlp_distill.errors import ModelNotFound, NotLight
from nlp_distill.exports.onnx_bits import few_bits
from nlp_distill.light.door import light_task, load_light
from nlp_distill.light.question_answering import answering_settings
from nlp_distill.light.stated import says_all
from nlp_distill.prediction import load_pipeline
from nlp_distill.serving import frames
from nlp_distill.serving.engine import Desk
from nlp_distill.task import load_task
from nlp_distill.testing import WORDS, tiny_rows

INT8, FP32 = "student-onnx-int8", "student-onnx-fp32"
HEAVY = ["torch", "transformers", "datasets", "pandas", "scipy", "pydantic", "nlp_distill.recipe"]
TEXTS = [row["text"] for row in tiny_rows(40)] + ["", "unknown words only", "film " * 200, "a\x00b ünïcödé 🙂"]
PAIRS = [{"text": text, "text_pair": TEXTS[-number]} for number, text in enumerate(TEXTS)]
CALLS = [{}, {"top_k": None}, {"top_k": 2}, {"top_k": 1}, {"function_to_apply": "none", "top_k": None}]


def asked(pipe, inputs, **parameters):
    """The pipeline's answer to inputs of either task."""
    if pipe.task != "question-answering":
        return pipe(inputs, **parameters)
    rows = inputs if isinstance(inputs, list) else [inputs]
    return pipe(question=[row["question"] for row in rows], context=[row["context"] for row in rows], **parameters)


@pytest.mark.parametrize("variant", [INT8, FP32])
@pytest.mark.parametrize("problem", ["single", "multi", "number", "unsaid"])
def test_classifiers_answer_as_the_pipeline(classifiers, problem, variant):
    folder = classifiers[problem]
    light, pipe = load_light(folder, variant), load_pipeline(folder, variant, threads=1)
    for call in CALLS:
        for inputs in (TEXTS[0], TEXTS[:1], TEXTS, PAIRS[1], PAIRS, {"text": "film"}):
            assert light(inputs, **call) == pipe(inputs, **call), (call, inputs)
    assert light(TEXTS, function_to_apply="sigmoid") == pipe(TEXTS, function_to_apply="sigmoid")


def questions(count, words):
    chance = random.Random(0)
    rows = []
    for _ in range(count):
        context = [chance.choice(WORDS) for _ in range(chance.randint(1, words))]
        rows.append({"question": " ".join(chance.choices(WORDS, k=5)), "context": ", ".join(context)})
    return rows


ASKED = [
    *questions(20, 40),
    *questions(6, 200),
    {"question": "film", "context": " "},
    {"question": "?", "context": "."},
]
QUESTION_CALLS = [
    {},
    {"top_k": 4},
    {"top_k": 4, "handle_impossible_answer": True},
    {"align_to_words": False, "top_k": 2},
    {"max_answer_len": 2},
    {"max_seq_len": 32, "doc_stride": 4},
]


@pytest.mark.parametrize("variant", [INT8, FP32])
@pytest.mark.parametrize("version", ["v1", "v2"])
def test_questions_are_answered_as_by_the_pipeline(answerers, version, variant):
    folder = answerers[version]
    light, pipe = load_light(folder, variant), load_pipeline(folder, variant, threads=1)
    for call in QUESTION_CALLS:
        for inputs in (ASKED[0], ASKED[:1], ASKED):
            assert light(inputs, **call) == asked(pipe, inputs, **call), (call, inputs)


@pytest.mark.parametrize("model_type", ["roberta", "distilbert", "mpnet", "electra", "deberta-v2", "albert"])
def test_every_family_of_encoders(tmp_path, export_tiny, model_type):
    folder = export_tiny(tmp_path / "model", "classification", model_type, int8=False, num_labels=2)
    with warnings.catch_warnings():
        # Of tracing DeBERTa.
        warnings.simplefilter("ignore")
        light, pipe = load_light(folder, FP32), load_pipeline(folder, FP32, threads=1)
    assert light(TEXTS, top_k=None) == pipe(TEXTS, top_k=None)
    assert light(PAIRS) == pipe(PAIRS)


def test_what_pipelines_refuse_is_refused(answerers, classifiers):
    light = load_light(answerers["v1"], FP32)
    long = " ".join(WORDS[:3] * 30)
    for inputs, parameters, reason in [
        ({"question": "", "context": "film"}, {}, "question is empty"),
        ({"question": "film", "context": ""}, {}, "context is empty"),
        ({"question": long, "context": long}, {}, "too little room"),
        ({"question": "film", "context": long}, {"doc_stride": 63, "max_seq_len": 64}, "doc_stride"),
        ({"question": "film", "context": long}, {"max_seq_len": 65}, "max_seq_len"),
    ]:
        with pytest.raises(ValueError, match=reason):
            light(inputs, **parameters)
    with pytest.raises(ValueError, match="function_to_apply"):
        load_light(classifiers["single"], FP32)("film", function_to_apply="tanh")


def test_as_many_spans_as_wanted_are_all_told(answerers):
    light = load_light(answerers["v1"], FP32)
    blank = {"question": "film", "context": " "}
    assert len(light.ask(blank).rows[0]["input_ids"]) == 4
    assert light(blank, top_k=3)["answer"] == ""


def test_a_long_question_is_fine_where_its_context_fits(answerers):
    light, pipe = load_light(answerers["v1"], FP32), load_pipeline(answerers["v1"], FP32, threads=1)
    question = {"question": " ".join(WORDS[:5] * 11), "context": "film"}
    assert light(question) == asked(pipe, question)


@pytest.mark.parametrize("options", [{}, {"stride": 5}, {"max_answer_tokens": 7, "no_answer": True}])
@pytest.mark.parametrize("length", [64, 384, 512])
def test_settings_are_the_adapters(options, length):
    class Limit:
        model_max_length = length

    adapter = load_task("question_answering", options)
    assert answering_settings(length, options) == adapter.pipeline_settings(Limit())


def test_batches_are_of_one_length_and_change_no_bit(classifiers):
    graph = load_light(classifiers["single"], FP32).graph
    light = load_light(classifiers["single"], FP32)
    assert graph.exact
    rows = light.ask(TEXTS * 2).rows
    sizes = []
    run = graph._run
    graph._run = lambda batch: sizes.append({len(row["input_ids"]) for row in batch}) or run(batch)
    together = graph.run(rows)
    assert all(len(lengths) == 1 for lengths in sizes) and len(sizes) < len(rows)
    for row, answer in zip(rows, together, strict=True):
        assert np.array_equal(graph.run([row])[0]["logits"], answer["logits"])


def test_int8_is_run_one_row_at_a_time_because_mates_would_change_its_answers(classifiers):
    light = load_light(classifiers["single"], INT8)
    assert not light.graph.exact
    rows = [
        row for row in light.ask(TEXTS).rows if len(row["input_ids"]) == len(light.ask(TEXTS[0]).rows[0]["input_ids"])
    ]
    batch = [light.graph._complete(row) for row in rows]
    assert len(batch) > 1
    together, alone = light.graph._run(batch), [light.graph._run([row])[0] for row in batch]
    assert any(not np.array_equal(a["logits"], b["logits"]) for a, b in zip(together, alone, strict=True))
    light.graph.try_batches(light.tokenizer.vocabulary, 64)
    assert not light.graph.exact


def test_weights_in_blocks_are_run_one_row_at_a_time(classifiers, tmp_path):
    """Their kernel's last bits depend on the place in a batch, too seldom for a few tries to show it."""
    folder = shutil.copytree(classifiers["single"], tmp_path / "model")
    onnx.save(few_bits(onnx.load(folder / "onnx" / "model.onnx"), 4, 32), folder / "onnx" / "model_q4.onnx")
    assert not load_light(folder, "student-onnx-q4").graph.exact


def test_questions_need_a_first_token_that_is_named(answerers, tmp_path):
    assert light_task(answerers["v2"], FP32) == "question_answering"
    assert light_task(changed(answerers["v2"], tmp_path / "a", "tokenizer_config.json", cls_token=None), FP32) is None


def test_what_makes_the_tokenizer_panic_is_refused(answerers, monkeypatch):
    class PanicException(BaseException):
        pass

    def encode_batch(_):
        raise PanicException("stride too large")

    light = load_light(answerers["v1"], FP32)
    monkeypatch.setattr(light.tokenizer, "_tokenizer", SimpleNamespace(encode_batch=encode_batch))
    monkeypatch.setattr(light.tokenizer, "_truncation", (64, 8, "only_second"))
    with pytest.raises(ValueError, match="stride too large"):
        light.tokenizer.encode("a", "b", 64, "only_second", 8)


def test_windows_that_go_on_by_a_token_each_are_refused_before_they_are_made(answerers):
    """A long question leaves so little of each window that a context makes thousands; short ones make few."""
    light = load_light(answerers["v1"], FP32)
    length = light.settings["max_seq_len"]
    long = " ".join(["film"] * (length - light.settings["doc_stride"] - 9))
    assert len(light.ask({"question": "who", "context": "good " * 4000}).rows) < 400
    with pytest.raises(ValueError, match="more than 4096 windows"):
        light.ask({"question": long, "context": "a " * 20_000})
    # A sign is a token of a letter.
    signs = {"question": "?" * (length - light.settings["doc_stride"] - 9), "context": "! " * 200}
    windows = len(light.ask(signs).rows)
    with pytest.raises(ValueError, match="more than 4096 windows"):
        light.ask([signs] * (4096 // windows + 2))


def test_what_an_engine_cannot_write_fails_alone():
    """Numbers of numpy are numbers; a thread that broke would leave all who come after without an answer."""

    class Engine:
        threads, most_together = 1, 4

        def answer(self, requests):
            return [(number, "answer", told, 0.0) for number, told, _ in requests]

    out = io.BytesIO()
    Desk(Engine(), out)._finish([(1, {"score": np.float32(0.5)}, {}), (2, object(), {})])
    out.seek(0)
    told = {head["id"]: (head["kind"], body) for head, body in iter(lambda: frames.read(out), None)}
    assert told == {1: ("answer", b'{"score":0.5}'), 2: ("failed", b"")}


def changed(folder, target, name, **settings):
    """A copy of a model folder with other settings in a JSON file."""
    shutil.copytree(folder, target)
    file = target / name
    file.write_text(json.dumps({**json.loads(file.read_text()), **settings}))
    return target


@pytest.mark.parametrize(
    ("file", "settings"),
    [
        ("config.json", {"architectures": ["BertForTokenClassification"]}),
        ("config.json", {"architectures": None}),
        ("config.json", {"is_encoder_decoder": True}),
        ("config.json", {"max_position_embeddings": None}),
        ("config.json", {"function_to_apply": "none"}),
        ("student.json", {"task": {"name": "word_tags", "options": {}}}),
        ("tokenizer_config.json", {"padding_side": "left"}),
        ("tokenizer_config.json", {"split_special_tokens": True}),
        ("tokenizer_config.json", {"added_tokens_decoder": {"3": {"content": "[OTHER]"}}}),
    ],
)
def test_what_is_not_plainly_ours_is_left_to_the_pipelines(classifiers, tmp_path, file, settings):
    assert light_task(classifiers["single"], FP32) == "classification"
    folder = changed(classifiers["single"], tmp_path / "model", file, **settings)
    assert light_task(folder, FP32) is None
    with pytest.raises(NotLight):
        load_light(folder, FP32)
    assert light_task(classifiers["single"], "student") is None


def test_a_tokenizer_whose_two_files_disagree_is_left_to_transformers(classifiers, tmp_path):
    normalizer = {"type": "BertNormalizer", "lowercase": True, "strip_accents": None, "handle_chinese_chars": True}
    named = {"tokenizer_class": "BertTokenizer", "clean_text": True}
    folder = changed(classifiers["single"], tmp_path / "a", "tokenizer.json", normalizer=normalizer)
    folder = changed(folder, tmp_path / "b", "tokenizer_config.json", **named, do_lower_case=True)
    assert says_all(folder)
    for number, other in enumerate(({"do_lower_case": False}, {"strip_accents": True})):
        assert not says_all(changed(folder, tmp_path / f"c{number}", "tokenizer_config.json", **other))


def test_a_file_that_is_no_graph_is_named(classifiers, tmp_path):
    shutil.copytree(classifiers["single"], tmp_path / "model")
    (tmp_path / "model" / "onnx" / "model.onnx").write_bytes(b"no graph")
    with pytest.raises(ModelNotFound, match=r"model\.onnx cannot be read"):
        load_light(tmp_path / "model", FP32)


def test_nothing_heavy_is_loaded(classifiers):
    code = (
        "import sys; from nlp_distill.light.door import load_light; from pathlib import Path;"
        f"print(load_light(Path({str(classifiers['single'])!r}), 'student-onnx-int8')('film'));"
        f"print([name for name in {HEAVY} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.endswith("[]\n")
