"""A form that loses too much is repaired by a quantization-aware epoch, in a run through the command line's API."""

import pytest

import nlp_distill
from nlp_distill.exports.gate import Gate


@pytest.mark.slow
def test_an_epoch_from_the_teacher_repairs(tiny_recipe, tmp_path, monkeypatch):
    recipe = tiny_recipe(export=[{"format": "onnx", "profile": "fast"}, {"format": "onnx", "profile": "small"}])
    honest, calls = Gate._loss, []

    def lossy(gate, entry, form):
        """All forms but those of a student that was trained for it lose too much."""
        calls.append(form.profile)
        trained = (tmp_path / "run" / "retrained" / ("int8" if form.profile == "fast" else "int4")).is_dir()
        found = honest(gate, entry, form)
        return {**found, "drop_on_selection": 0.0 if trained else 9.0}

    monkeypatch.setattr(Gate, "_loss", lossy)
    run = nlp_distill.run(recipe, out=tmp_path / "run")
    assert calls == ["fast"] * 5 + ["small"] * 3
    by_name = {variant["name"]: variant for variant in run.results["variants"]}
    for name in ("student-onnx-int8", "student-onnx-q4"):
        entry = by_name[name]
        assert entry["status"] == "repaired" and "quantization-aware" in entry["settings"]["trained"]
        assert [tried["gate"]["drop_on_selection"] for tried in entry["settings"]["attempts"]][-2:] == [9.0, 0.0]
        assert entry["score"]["accuracy"] >= 0 and entry["settings"]["file_name"].endswith(".onnx")
    assert run.results["recommended"] in by_name
    again = nlp_distill.run(tmp_path / "run")
    assert again.results == run.results and len(calls) == 8
