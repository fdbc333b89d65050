"""Exports of tiny models, the pipelines that serve them, and the gate."""

import json
from pathlib import Path

import numpy as np
import onnx
import pytest

import nlp_distill
from nlp_distill.errors import ParityFailed, VariantUnknown
from nlp_distill.exports.parity import require_parity
from nlp_distill.measuring import files_to_run
from nlp_distill.prediction import load_pipeline
from nlp_distill.recipe import Export

TEXTS = ["a good fine film", "the plot is awful", "superb music"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory, tiny_teacher, tiny_data):
    """A whole tiny run through the Python API, control and int8 included."""
    folder = tmp_path_factory.mktemp("run")
    recipe = nlp_distill.Recipe.model_validate(
        {
            "tasks": ["classification"],
            "data": {"dataset": str(tiny_data), "label_names": ["bad", "good"]},
            "teachers": [
                {"model": str(tiny_teacher), "finetune": {"epochs": 6, "learning_rate": 2e-3, "batch_size": 8}}
            ],
            "student": {"layers": 2},
            "distill": {"phases": [{"epochs": 4, "learning_rate": 2e-3, "batch_size": 8}]},
            "control": True,
            "precision": "fp32",
            "export": [{"format": "onnx", "profile": "fast", "score_drop": 100}],
            "budget": {"latency_ms": 1000, "size_mb": 0.0001},
        }
    )
    return nlp_distill.run(recipe, out=folder / "run")


def test_results_are_the_contract(finished):
    results = finished.results
    names = ["teacher", "control", "student", "student-onnx-fp32", "student-onnx-int8"]
    assert [variant["name"] for variant in results["variants"]] == names
    assert results["schema"] == 1 and results["task"] == "classification" and results["metric"] == "accuracy"
    assert results["cache"] == {"distill": "fp32"}
    assert "from a cache in fp32" in (finished.path / "report.md").read_text(encoding="utf-8")
    assert results["data"]["rows"]["evaluation"] == 60 and results["data"]["split"] == "validation"
    for variant in results["variants"]:
        assert variant["status"] == "passed" and variant["n"] == 60
        assert 0 <= variant["score_ci95"][0] <= variant["score"]["accuracy"] <= variant["score_ci95"][1] <= 100
        assert variant["params"] > 0 and variant["bytes"] > 0 and variant["peak_memory_mb"] > 0
        assert {entry["sequence"] for entry in variant["latency_ms"]} == {results["real_sequence"], 32, 64}
        assert all(0 < entry["p50"] <= entry["p90"] for entry in variant["latency_ms"])
    teacher, student = results["variants"][0], results["variants"][2]
    assert teacher["retained"] == 1 and teacher["drop"] == 0 and teacher["agreement"] == 1
    assert student["params"] < teacher["params"]
    assert "gain_over_control_ci95" in student
    assert set(results["timings_s"]) == {
        "data", "teacher", "student", "distill", "control", "export", "evaluate", "measure"
    }  # fmt: skip
    assert results["budget"]["latency_ms"]["met"] and not results["budget"]["size_mb"]["met"]
    assert results["recipe_sha256"] == json.loads((finished.path / "manifest.json").read_text())["recipe_sha256"]


def test_the_reported_outputs_are_what_a_user_gets(finished):
    """Row by row, through the pipeline, for the file that the results name."""
    lines = (Path(_data(finished)) / "validation.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    for variant in ("teacher", "student", "student-onnx-fp32", "student-onnx-int8"):
        pipe = finished.pipeline(variant)
        right = [pipe(row["text"])[0]["label"] == ["bad", "good"][row["label"]] for row in rows]
        reported = next(v for v in finished.results["variants"] if v["name"] == variant)["score"]["accuracy"]
        assert 100 * np.mean(right) == pytest.approx(reported, abs=0.01), variant


def _data(run):
    return run.results["data"]["source"]


def test_the_layout_loads_with_stock_classes(finished):
    import transformers
    from optimum.onnxruntime import ORTModelForSequenceClassification
    from optimum.pipelines import pipeline

    model = finished.path / "model"
    assert sorted(path.name for path in (model / "onnx").iterdir()) == ["model.onnx", "model_quantized.onnx"]
    ours = [answer["score"] for answer in finished.pipeline("student")(TEXTS)]
    stock = transformers.pipeline("text-classification", model=str(model), device="cpu")(TEXTS)
    assert [answer["score"] for answer in stock] == pytest.approx(ours, abs=1e-6)
    for variant, name in (("student-onnx-int8", "model_quantized.onnx"), ("student-onnx-fp32", "model.onnx")):
        ort = ORTModelForSequenceClassification.from_pretrained(model, subfolder="onnx", file_name=name)
        tokenizer = transformers.AutoTokenizer.from_pretrained(model)
        theirs = pipeline("text-classification", model=ort, tokenizer=tokenizer, accelerator="ort")
        mine = finished.pipeline(variant)
        for text in TEXTS:
            assert theirs(text)[0]["score"] == pytest.approx(mine(text)[0]["score"], abs=1e-6)
            assert theirs(text)[0]["label"] in ("good", "bad")


def test_the_delivered_files_are_clean(finished):
    model = finished.path / "model"
    tokenizer = json.loads((model / "tokenizer.json").read_text())
    assert tokenizer["padding"] is None and tokenizer["truncation"] is None
    config = json.loads((model / "config.json").read_text())
    assert config["problem_type"] == "single_label_classification"
    assert config["id2label"] == {"0": "bad", "1": "good"}
    assert not config.get("_name_or_path")
    assert json.loads((model / "student.json").read_text())["origin"]["copy_map"] == {"encoder": [1, 3]}
    assert not [
        path for path in finished.path.rglob("*") if path.suffix in (".bin", ".pt", ".pkl") or "tmp" in path.name
    ]


def test_int8_has_int8_weights(finished):
    graph = onnx.load(finished.path / "model" / "onnx" / "model_quantized.onnx").graph
    assert any(node.op_type == "MatMulIntegerToFloat" for node in graph.node)


def test_recommended_is_the_smallest_that_passed(finished):
    students = [v for v in finished.results["variants"] if v["name"].startswith("student")]
    assert finished.results["recommended"] == min(students, key=lambda v: v["bytes"])["name"]
    assert type(load_pipeline(finished.path / "model").model).__name__ == "ORTModelForSequenceClassification"
    with pytest.raises(VariantUnknown, match="it has student-onnx-int8"):
        load_pipeline(finished.path, "student-openvino-int8")


def test_long_inputs_are_cut(finished):
    assert finished.pipeline()("good " * 500)[0]["label"] in ("good", "bad")


def test_a_bad_int8_file_is_refused_not_delivered(finished, monkeypatch, tmp_path):
    """Weights are spoilt after quantisation: the gate on the selection rows must notice."""
    import shutil

    from nlp_distill.exports import onnx_files as exporter

    folder = tmp_path / "spoilt"
    shutil.copytree(finished.path, folder)
    honest = exporter.dynamic_int8

    def spoilt(model, sources, out, suffix, target):
        honest(model, sources, out, suffix, target)
        (file,) = out.glob("*.onnx")
        proto = onnx.load(file)
        for weight in proto.graph.initializer:
            if "classifier" in weight.name or weight.data_type == onnx.TensorProto.INT8:
                array = onnx.numpy_helper.to_array(weight)
                weight.CopyFrom(onnx.numpy_helper.from_array(-array, weight.name))
        onnx.save(proto, file)

    monkeypatch.setattr(exporter, "dynamic_int8", spoilt)
    run = nlp_distill.run(folder, "export=[{format: onnx, profile: dynamic, score_drop: 1.0}]", redo=True)
    assert [file.name for file in (folder / "model" / "onnx").iterdir()] == ["model.onnx"]
    entry = run.results["variants"][-1]
    assert (entry["name"], entry["status"], entry["path"]) == ("student-onnx-dynamic", "refused", None)
    assert run.results["recommended"] in ("student", "student-onnx-fp32")


def test_parity_is_required():
    found = {"rows": 5, "max_abs_difference": 2e-4, "flips": 0}
    with pytest.raises(ParityFailed, match="student-onnx-fp32 disagrees"):
        require_parity("student-onnx-fp32", {**found, "largest_logit": 5.0})
    require_parity("student-onnx-fp32", {**found, "largest_logit": 50.0})
    with pytest.raises(ParityFailed):
        require_parity("student-onnx-fp32", {**found, "max_abs_difference": 0.0, "flips": 1, "largest_logit": 5.0})


def test_size_counts_what_is_needed_to_run(finished):
    names = {path.name for path in files_to_run(finished.path / "model", "student-onnx-int8")}
    assert {"model_quantized.onnx", "config.json", "tokenizer.json"} <= names
    assert "model.safetensors" not in names and "model.onnx" not in names
    assert Export().profile == "fast"
