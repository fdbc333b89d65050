"""An export is the same model: files in the layout that pipelines load, fp32 proven equal, int8 close."""

import sys

import numpy as np
import pytest

from nlp_distill.errors import MissingExtra, ModelFolderNotFound, NotExportable, ParityFailed, VariantUnknown
from nlp_distill.exports import onnx_files
from nlp_distill.exports.formats import FORMATS
from nlp_distill.exports.onnx_files import dynamic_int8, export_fp32, instruction_set
from nlp_distill.exports.parity import answer_changes, logit_difference, require_parity
from nlp_distill.loading import load_config, load_model, load_ort, load_tokenizer
from nlp_distill.prediction import load_pipeline, variant_pipeline
from nlp_distill.recipe import Data, Export
from nlp_distill.rows import Rows
from nlp_distill.scores import predict
from nlp_distill.task import load_task
from nlp_distill.testing import save_tiny

FP32, INT8 = "model.onnx", "model_quantized.onnx"
CLASSIFIER = "AutoModelForSequenceClassification"
TASK = "text-classification"


@pytest.fixture(scope="module")
def scored(tiny_data):
    """The task and its validation rows."""
    task = load_task("classification")
    spec = Data(dataset=str(tiny_data), label_names=["bad", "good"])
    return task, task.load_data(spec)["validation"]


@pytest.fixture(scope="module")
def exported(tmp_path_factory, scored):
    """A model of 2 layers with its ONNX files and what quantization says of itself."""
    settings = scored[0].config_settings()
    model = save_tiny(tmp_path_factory.mktemp("exported"), num_hidden_layers=2, **settings)
    folder = model / "onnx"
    folder.mkdir()
    export_fp32(model, TASK, folder)
    target = instruction_set(Export())
    dynamic_int8(model, [folder / FP32], folder, "_quantized", target)
    return model, target


def test_two_files_and_nothing_beside_them(exported):
    model, target = exported
    assert sorted(file.name for file in (model / "onnx").iterdir()) == [FP32, INT8]
    assert (model / "onnx" / INT8).stat().st_size < (model / "onnx" / FP32).stat().st_size
    assert target in ("avx512_vnni", "avx2", "arm64")


def difference(model, task, rows, exported):
    tokenizer = load_tokenizer(model)
    features = Rows(task.features(rows, tokenizer, 64), rows)
    return logit_difference(task, tokenizer, load_model(model, CLASSIFIER), exported, features)


def test_fp32_is_pytorch_and_int8_is_close(exported, scored):
    model, _ = exported
    task, rows = scored
    names = {None: None, "fp32": "student-onnx-fp32", "int8": "student-onnx-int8"}
    raws = {name: predict(variant_pipeline(model, task, named, 1), task, rows) for name, named in names.items()}
    found = {
        **answer_changes(task, raws[None], raws["fp32"]),
        **difference(model, task, rows, load_ort(model, CLASSIFIER, "")),
    }
    require_parity("student-onnx-fp32", found)
    assert found["rows"] == len(rows) and found["flips"] == 0
    assert found["largest_logit"] == pytest.approx(np.abs(raws[None]).max(), rel=1e-4)
    assert 0 < np.abs(raws["fp32"] - raws["int8"]).max() < 0.1
    moved = difference(model, task, rows, load_ort(model, CLASSIFIER, "_quantized"))
    assert 1e-4 < moved["max_abs_difference"] < 0.1


def test_a_logit_that_moved_or_is_no_number_is_seen(exported, scored):
    model, _ = exported

    class Moved:
        def __init__(self, by):
            self.by, self.model = by, load_model(model, CLASSIFIER)

        def __call__(self, **inputs):
            outputs = self.model(**inputs)
            outputs.logits = outputs.logits + self.by
            return outputs

    found = {"rows": 1, "flips": 0, **difference(model, *scored, Moved(2e-4))}
    with pytest.raises(ParityFailed, match=r"2\.00e-04"):
        require_parity("student-onnx-fp32", found)
    assert np.isnan(difference(model, *scored, Moved(float("nan")))["max_abs_difference"])


@pytest.mark.parametrize(
    ("difference", "flips", "largest", "passes"),
    [
        (9e-5, 0, 1.0, True),
        (2e-4, 0, 1.0, False),
        (0.0, 1, 1.0, False),
        (9e-4, 0, 100.0, True),
        (2e-3, 0, 100.0, False),
        (float("nan"), 0, 1.0, False),
    ],
)
def test_what_parity_allows(difference, flips, largest, passes):
    found = {"rows": 5, "max_abs_difference": difference, "flips": flips, "largest_logit": largest}
    if passes:
        require_parity("x", found)
    else:
        with pytest.raises(ParityFailed):
            require_parity("x", found)


def test_the_instruction_set_is_the_machines_unless_it_is_given(monkeypatch):
    assert instruction_set(Export(target="avx2")) == "avx2"
    monkeypatch.setattr(onnx_files.platform, "machine", lambda: "arm64")
    assert instruction_set(Export()) == "arm64"


def test_what_can_be_exported_is_known_before_training(exported, scored, monkeypatch):
    config, task = load_config(exported[0]), scored[0]
    FORMATS["onnx"].check(config, task, Export())
    with monkeypatch.context() as patched:
        patched.setattr(type(task), "pipeline_task", "summarization")
        with pytest.raises(NotExportable, match="summarization"):
            FORMATS["onnx"].check(config, task, Export())
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MissingExtra, match=r"nlp-distill\[onnx\]"):
        FORMATS["onnx"].check(config, task, Export())


def test_a_pipeline_of_a_model_folder_takes_int8_first(exported):
    model, _ = exported
    pipe = load_pipeline(model)
    assert pipe.model.path.name == INT8
    assert load_pipeline(model, "student-onnx-fp32").model.path.name == FP32
    assert type(load_pipeline(model, "student").model).__name__ == "BertForSequenceClassification"
    answer = pipe("good film")[0]
    assert answer["label"] in ("bad", "good") and 0 <= answer["score"] <= 1


def test_long_inputs_are_cut_rather_than_refused(exported):
    model, _ = exported
    for variant in ("student", "student-onnx-int8"):
        assert load_pipeline(model, variant)("good " * 500)[0]["label"] in ("bad", "good")


def test_the_order_of_a_list_and_one_row_at_a_time(exported):
    """Dynamic int8 answers depend on batch mates, so a list is answered as its parts are."""
    pipe = load_pipeline(exported[0], "student-onnx-int8")
    texts = ["good", "bad awful film story actor scene plot music", "fine"]
    assert [answer["score"] for answer in pipe(texts)] == [pipe(text)[0]["score"] for text in texts]


def test_what_is_not_there(exported, tmp_path):
    model, _ = exported
    with pytest.raises(VariantUnknown, match="student-onnx-int8"):
        load_pipeline(model, "control")
    with pytest.raises(ModelFolderNotFound):
        load_pipeline(tmp_path)


def test_a_run_gives_what_it_recommends_and_only_what_it_has(exported, tmp_path):
    model, _ = exported
    run = tmp_path / "run"
    run.mkdir()
    (run / "recipe.yaml").write_text("task: classification\n")
    (run / "model").symlink_to(model)
    # Without results no export is proven yet.
    assert type(load_pipeline(run).model).__name__ == "BertForSequenceClassification"
    (run / "results.json").write_text('{"recommended": "student-onnx-fp32"}')
    assert load_pipeline(run).model.path.name == FP32
    with pytest.raises(VariantUnknown, match="control"):
        load_pipeline(run, "control")
    (run / "teacher").symlink_to(model)
    assert type(load_pipeline(run, "teacher").model).__name__ == "BertForSequenceClassification"
