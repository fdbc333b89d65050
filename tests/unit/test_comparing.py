"""Models side by side: found whoever made them, timed in turns, compared with intervals and a control."""

import json
import shutil
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest

from nlp_distill.comparing import blocks
from nlp_distill.comparing.blocks import Cell, Times, ratio, time_in_turns
from nlp_distill.comparing.measure import measure_models
from nlp_distill.comparing.rows import _real, _within
from nlp_distill.comparing.subjects import run_of, subjects
from nlp_distill.comparing.tables import findings
from nlp_distill.errors import ModelNotFound, NotMeasurable
from nlp_distill.exports.onnx_files import export_fp32
from nlp_distill.loading import load_model
from nlp_distill.measuring import Measured
from nlp_distill.testing import save_tiny, tiny_model, tiny_tokenizer
from nlp_distill.verbs.measures import is_recipe, one_recipe

CLASSIFIER = "AutoModelForSequenceClassification"
CELL = Cell(32, 1, (32,), 32)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """PyTorch and ONNX as ours lie, ONNX as Optimum leaves it, one with other names of labels, one without a head."""
    folder = tmp_path_factory.mktemp("models")
    ours = save_tiny(folder / "ours", num_hidden_layers=2, id2label={0: "0", 1: "1"}, label2id={"0": 0, "1": 1})
    (ours / "onnx").mkdir()
    export_fp32(ours, "text-classification", ours / "onnx")
    plain = folder / "plain"
    plain.mkdir()
    load_model(ours, CLASSIFIER).save_pretrained(plain)
    tiny_tokenizer().save_pretrained(plain)
    config = json.loads((plain / "config.json").read_text())
    config |= {"id2label": {"0": "LABEL_0", "1": "LABEL_1"}, "label2id": {"LABEL_0": 0, "LABEL_1": 1}}
    (plain / "config.json").write_text(json.dumps(config))
    root = folder / "root"
    root.mkdir()
    shutil.copy(ours / "onnx" / "model.onnx", root)
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        shutil.copy(ours / name, root)
    save_tiny(folder / "bare", auto_class="AutoModel")
    return folder


def found(reference):
    with ExitStack() as stack:
        (subject,) = subjects([str(reference)], None, stack)
        return subject, subject.bytes


def test_what_is_named_is_what_is_measured(models):
    graph = (models / "root" / "model.onnx").stat().st_size
    ours, weights = models / "ours", (models / "ours" / "model.safetensors").stat().st_size
    for reference, runtime, least in [
        (ours, "onnxruntime", graph),
        (ours / "model.safetensors", "pytorch", weights),
        (ours / "onnx" / "model.onnx", "onnxruntime", graph),
        (models / "root", "onnxruntime", graph),
        (models / "root" / "model.onnx", "onnxruntime", graph),
        (models / "plain", "pytorch", weights),
    ]:
        subject, size = found(reference)
        assert (subject.runtime, subject.task.name) == (runtime, "classification"), reference
        assert least < size < least + 20_000
    assert found(models / "bare")[0].task is None


def test_what_is_no_model_is_refused_with_a_sentence(models, tmp_path):
    (tmp_path / "notes.txt").write_text("x")
    (tmp_path / "model.onnx").write_text("x")
    (tmp_path / "decoder_model.onnx").write_text("x")
    for name, error, said in [
        ("notes.txt", NotMeasurable, "no model that we know"),
        ("decoder_model.onnx", NotMeasurable, "one part of a model"),
        ("model.onnx", ModelNotFound, "no config.json"),
    ]:
        with pytest.raises(error, match=said):
            found(tmp_path / name)


def test_the_run_that_a_model_lies_in(tmp_path):
    (tmp_path / "model" / "onnx").mkdir(parents=True)
    (tmp_path / "recipe.yaml").write_text("x")
    for place in ("", "model", "model/onnx", "model/onnx/model.onnx"):
        assert run_of(tmp_path / place) == tmp_path
    assert run_of(Path("package:one/model")) is None


def test_a_recipe_goes_on_and_models_are_measured(tmp_path, models):
    run = tmp_path / "run"
    run.mkdir()
    (run / "recipe.yaml").write_text("x")
    for name in ("quickstart", "mine.yaml", str(run)):
        assert is_recipe(name) and one_recipe([name], of_recipe=False, of_model=False)
    (run / "results.json").write_text("{}")
    assert not one_recipe([str(run)], of_recipe=False, of_model=False)
    assert one_recipe([str(run)], of_recipe=True, of_model=False)
    assert not one_recipe([str(models / "ours"), "org/name", "package:one/model"], of_recipe=False, of_model=True)
    for names, of_model, said in [
        (["quickstart", "org/name"], False, "Give it alone"),
        (["quickstart"], True, "Finish the run first"),
        (["quickstrat"], False, "did you mean the recipe quickstart"),
        (["bert-base-uncased"], False, "bert-base-uncased@main"),
    ]:
        with pytest.raises(NotMeasurable, match=said):
            one_recipe(names, of_recipe=False, of_model=of_model)


def times(blocks_of_calls):
    return Times(0.1, 1.0, blocks={CELL: [[list(calls)] for calls in blocks_of_calls]})


def test_a_ratio_is_of_blocks_of_one_round():
    """A machine that slows down over the rounds changes no ratio; medians of all rounds would see it."""
    slow = np.linspace(1, 10, 15)
    against, other = times([[4 * s] * 3 for s in slow]), times([[2 * s] * 3 for s in slow])
    assert ratio(against, other, CELL, CELL) == {"tokens": 32, "batch": 1, "ratio": 2.0, "ci95": [2.0, 2.0]}
    generator = np.random.default_rng(1)
    noisy = times([[4 * s * generator.lognormal(0, 0.2)] * 3 for s in slow])
    low, high = ratio(noisy, other, CELL, CELL)["ci95"]
    assert 1.5 < low < 2 < high < 2.7


def test_latency_throughput_and_their_interval():
    measured = times([[1.0, 2.0, 3.0]] * 5).latency(Cell(32, 1, (32,), 32))
    assert measured == {
        **{"tokens": 32, "batch": 1, "p50": 2.0, "p50_ci95": [2.0, 2.0], "p90": 3.0},
        **{"rows_per_s": 500.0, "tokens_per_s": 16_000.0},
    }


def test_real_lengths_are_those_of_the_data():
    lengths = np.array([5] * 50 + [20] * 50)
    single, batched = _real(lengths, 1), _real(lengths, 8)
    assert set(single.lengths) == {5, 20} and single.real_tokens == sum(single.lengths)
    assert set(batched.lengths) <= {5, 20} and len(batched.lengths) == 8
    assert batched.real_tokens < 8 * sum(batched.lengths), "padding is no work done"
    assert _within([32, 128, 384], 64) == [32, 64]


def test_processes_take_turns_in_an_order_of_chance(models, monkeypatch):
    asked = []

    class Fake:
        def __init__(self, model, threads):
            self.name = model.name

        def ask(self, **request):
            if "sequence" in request:
                asked.append((self.name, request["sequence"], request["runs"]))
                return {"ms": [4.0] * request["runs"]}
            return {"load_s": 0.5, "held_mb": 100.0, "peak_memory_mb": 150.0}

        def close(self):
            asked.append((self.name, "closed", 0))

    monkeypatch.setattr(blocks, "Worker", Fake)
    cells = {name: [CELL, Cell("real", 1, (5, 9), 14)] for name in ("a", "b")}
    told = [Measured(name, "", CLASSIFIER, None) for name in ("a", "b")]
    made = time_in_turns(told, cells, 1, 3)
    assert [entry[0] for entry in asked[-2:]] == ["a", "b"] and asked[-1][1] == "closed"
    assert {len(block) for block in made["a"].blocks[CELL]} == {1} and len(made["a"].blocks[CELL]) == 3
    assert made["b"].milliseconds(cells["b"][1]).tolist() == [8.0] * 3
    assert {runs for _, sequence, runs in asked[4:-2] if sequence == 32} == {20}, "as many calls as fill a block"
    firsts = [name for name, sequence, _ in asked if sequence == 32]
    assert firsts != ["a", "b"] * (len(firsts) // 2), "the order changes from round to round"


@pytest.mark.slow
def test_models_of_others_are_scored_and_timed_beside_ours(models, tiny_data, monkeypatch):
    """The same weights in three forms: the same score, full agreement; labels without names are the data's in order."""
    monkeypatch.setattr(blocks, "BLOCK_MS", 2.0)
    made = measure_models(
        [str(models / "root"), str(models / "bare")],
        against=str(models / "plain"),
        data=str(tiny_data),
        lengths=[16, 512],
        batches=[2],
        threads=[1],
        rounds=3,
    )
    plain, root, bare = made["models"]
    assert plain["score"] == root["score"] and root["agreement"] == 1.0 and root["gain_ci95"] == [0, 0]
    assert bare["score"] is None and "no head for classification" in bare["note"]
    assert [row["tokens"] for row in root["latency_ms"]] == ["real", 16, 64], "512 is beyond what they read"
    assert all(0 < row["p50"] <= row["p90"] and row["rows_per_s"] > 0 for row in root["latency_ms"])
    for model in made["models"]:
        assert model["load_s"] > 0 and model["peak_memory_mb"] > model["model_memory_mb"] > 0
    assert {entry["name"] for entry in made["ratios"]} == {root["name"], bare["name"]}
    assert all({"ratio", "ci95", "control", "control_ci95", "steady"} <= {*entry} for entry in made["ratios"])
    assert json.loads(json.dumps(made)) == made
    assert any("control" in line for line in findings(made))


def test_other_labels_are_never_scored(models, tmp_path, tiny_data):
    other = tmp_path / "other"
    other.mkdir()
    tiny_model("bert", CLASSIFIER, id2label={0: "cat", 1: "dog"}, label2id={"cat": 0, "dog": 1}).save_pretrained(other)
    tiny_tokenizer().save_pretrained(other)
    with pytest.raises(NotMeasurable, match=r"its labels \(cat, dog\) are not the data's"):
        measure_models([str(other)], data=str(tiny_data), rounds=3)


def test_a_busy_machine_is_said_to_be(models):
    entry = {"name": "b", "threads": 1, "tokens": 32, "batch": 1, "ratio": 2.0, "ci95": [1.9, 2.1]}
    row = {"threads": 1, "batch": 1, "tokens": 32, "rows_per_s": 1.0, "tokens_per_s": 1.0}
    listed = [{"name": name, "latency_ms": [row]} for name in ("a", "b")]
    calm = {**entry, "control": 1.01, "control_ci95": [0.99, 1.02], "steady": True}
    busy = {**entry, "control": 1.2, "control_ci95": [0.9, 1.4], "steady": False}
    assert not any("busy" in line for line in findings({"models": listed, "ratios": [calm]}))
    assert any("busy: in 1 of 2 rows" in line for line in findings({"models": listed, "ratios": [calm, busy]}))
