"""An estimate counts what a run then has; time is only roughly right and not tested."""

import pytest

import nlp_distill
from nlp_distill.estimate import EFFICIENCY, Part, _seconds, estimate
from nlp_distill.loading import load_model
from nlp_distill.recipe import Phase
from nlp_distill.testing import save_tiny, tiny_config, tiny_model


def test_parameters_without_weights_are_those_of_the_model():
    for kind, auto in (("bert", "AutoModelForMaskedLM"), ("t5", "AutoModelForSeq2SeqLM"), ("albert", "AutoModel")):
        model = tiny_model(kind, auto)
        part = Part.of(tiny_config(kind), auto)
        embedded = model.get_input_embeddings().weight.numel()
        assert part.parameters == model.num_parameters()
        # What an output over the vocabulary shares with the embeddings is passed by every token.
        assert part.per_token == part.parameters - (0 if auto != "AutoModel" else embedded)


def test_an_estimate_against_the_run(tiny_recipe, tmp_path):
    recipe = tiny_recipe(control=True)
    expected = estimate(str(recipe), ["distill.epochs=3"], tmp_path)
    run = nlp_distill.run(recipe, "distill.epochs=3", out=tmp_path / "run", until="control")
    stages = run.dir.manifest()["stages"]
    taken = stages["teacher"]["how"]["steps"]
    taken += sum(trained["steps"] for stage in ("distill", "control") for trained in stages[stage]["trained"])
    assert expected.steps == taken
    for part, folder in ((expected.teacher, run.dir.teacher), (expected.student, run.dir.model)):
        assert part.parameters == load_model(folder, "AutoModelForSequenceClassification").num_parameters()
    assert expected.disk > sum(file.stat().st_size for file in run.path.rglob("*.safetensors"))
    assert 0 < expected.seconds < 600 and expected.memory > 0.5e9
    assert any(line.startswith("  memory: about") for line in expected.lines())


def test_a_cached_teacher_is_run_once():
    teacher, student = Part(100, 90, 6, 8), Part(50, 40, 3, 8)
    seconds = {
        cache: _seconds(Phase(epochs=3, cache=cache), student, teacher, 1e9, 10, rate=1e9) for cache in ("none", "auto")
    }
    assert seconds["none"] - seconds["auto"] == pytest.approx(2 * 2 * 90 * 1e10 / (1e9 * EFFICIENCY), rel=1e-3)


def test_a_full_disk_is_said_before(tiny_recipe, tmp_path, monkeypatch):
    monkeypatch.setattr("nlp_distill.estimate.shutil.disk_usage", lambda path: type("Usage", (), {"free": 1000}))
    assert any("only 0.0 GB are free" in line for line in estimate(str(tiny_recipe()), out=tmp_path).lines())


def test_a_teacher_that_is_tuned_in_several_ways_counts(tiny_recipe, tmp_path):
    recipe = str(tiny_recipe(teacher={"model": str(tmp_path / "teacher"), "finetune": "auto"}))
    save_tiny(tmp_path / "teacher", "bert", "AutoModel", hidden_size=256, intermediate_size=1024)
    once = estimate(recipe, ["teacher.finetune={epochs: 1}"], tmp_path)
    auto = estimate(recipe, [], tmp_path)
    assert auto.memory > 0.9 * once.memory and auto.disk > once.disk + 2 * 16 * auto.teacher.parameters


def test_a_run_that_has_trained_needs_no_room_for_checkpoints(tiny_recipe, tmp_path, monkeypatch):
    recipe = tiny_recipe()
    nlp_distill.run(recipe, out=tmp_path / "run", until="control")
    monkeypatch.setattr("nlp_distill.estimate._free", lambda folder: 4e5)
    nlp_distill.run(recipe, out=tmp_path / "run", until="export")
