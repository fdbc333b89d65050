"""Whole tiny runs: every kind of label, teacher and student that a recipe can ask for."""

import json
import random

import pytest
from safetensors.numpy import load_file

import nlp_distill
from nlp_distill import stages as stages_of_a_run
from nlp_distill.cli import main
from nlp_distill.cutting import slices
from nlp_distill.errors import BudgetMissed, StageChanged, TrackerMissing
from nlp_distill.task import load_task
from nlp_distill.testing import BAD, GOOD, save_tiny, tiny_rows

FAST = {"epochs": 6, "learning_rate": 3e-3, "batch_size": 8}


def table(folder, name, rows):
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    return folder


def write(folder, make, train=160, validation=60):
    for name, count, seed in (("train", train, 0), ("validation", validation, 1)):
        table(folder, name, [make(row) for row in tiny_rows(count, seed)])
    return folder


def run(recipe, tmp_path, *overrides, until="evaluate", **options):
    return nlp_distill.run(recipe, *overrides, out=tmp_path / "run", until=until, **options)


def stages(finished):
    return finished.dir.manifest()["stages"]


def count(words, row):
    return sum(word in words for word in row["text"].split())


def test_several_labels(tiny_recipe, tmp_path):
    data = write(
        tmp_path / "d", lambda r: {"text": r["text"], "good": int(count(GOOD, r) > 0), "bad": int(count(BAD, r) > 0)}
    )
    recipe = tiny_recipe(
        data={"dataset": str(data), "columns": {"text": "text", "label": ["good", "bad"]}},
        teacher={"model": str(save_tiny(tmp_path / "t", auto_class="AutoModel")), "finetune": {**FAST, "epochs": 12}},
    )
    finished = run(recipe, tmp_path, "export=[{format: onnx, score_drop: 100}]")
    scores = stages(finished)["evaluate"]["scores"]
    assert list(scores["teacher"]) == ["f1_micro", "f1_macro", "accuracy"]
    assert scores["teacher"]["f1_micro"] > 80
    assert scores["student-onnx-fp32"] == scores["student"]
    config = json.loads((finished.path / "model" / "config.json").read_text())
    assert config["problem_type"] == "multi_label_classification"
    answers = finished.pipeline("student")("good bad", top_k=None)
    assert sum(answer["score"] for answer in answers) != pytest.approx(1, abs=1e-3)  # sigmoid, not softmax


def test_regression_on_pairs(tiny_recipe, tmp_path):
    def make(row):
        first, second = row["text"], random.Random(row["text"]).choice(["good film", "bad film"])
        return {"sentence1": first, "sentence2": second, "score": count(GOOD, row) / 4 - count(BAD, row) / 4 + 0.1}

    recipe = tiny_recipe(
        data={"dataset": str(write(tmp_path / "d", make))},
        teacher={"model": str(save_tiny(tmp_path / "t", auto_class="AutoModel")), "finetune": {**FAST, "epochs": 12}},
    )
    finished = run(recipe, tmp_path, "export=[{format: onnx, score_drop: 100}]")
    scores = stages(finished)["evaluate"]["scores"]
    assert list(scores["teacher"]) == ["pearson", "spearmanr"]
    assert scores["teacher"]["pearson"] > 60
    assert scores["student-onnx-fp32"]["pearson"] == pytest.approx(scores["student"]["pearson"], abs=0.02)
    answer = finished.pipeline("student")({"text": "good good", "text_pair": "good film"})
    assert not 0 <= answer["score"] <= 1 or answer["score"] != 1.0
    assert json.loads((finished.path / "model" / "config.json").read_text())["problem_type"] == "regression"


def test_glue_by_name_from_local_files(tmp_path, tiny_recipe):
    rows = [{"premise": r["text"], "hypothesis": "a film", "label": i % 3} for i, r in enumerate(tiny_rows(90))]
    folder = table(tmp_path / "mnli", "train", rows)
    table(folder, "validation_matched", rows[:30])
    table(folder, "validation_mismatched", rows[30:50])
    spec = nlp_distill.Recipe.model_fields["data"].annotation(dataset="glue/mnli", files=str(folder))
    task = load_task("classification")
    cut = slices(task.load_data(spec), spec)
    assert task.label_names == ["entailment", "neutral", "contradiction"]
    assert cut.rows["evaluation"] == 50
    import numpy as np

    right = np.eye(3)[cut.evaluation["target"][:]]
    assert task.score(right, cut.evaluation) == {"accuracy": 100.0, "accuracy_mm": 100.0}
    right[:30] = 1 - right[:30]
    assert task.score(right, cut.evaluation)["accuracy_mm"] == 100.0
    assert task.score(right, cut.evaluation)["accuracy"] < 100.0


def test_a_fine_tuned_teacher_is_used_as_it_is(tiny_recipe, tmp_path):
    teacher = save_tiny(tmp_path / "t")
    finished = run(tiny_recipe(teacher={"model": str(teacher)}), tmp_path, until="teacher")
    assert stages(finished)["teacher"]["how"]["finetuned"] is False
    ours, theirs = load_file(finished.path / "teacher" / "model.safetensors"), load_file(teacher / "model.safetensors")
    assert all((ours[name] == theirs[name]).all() for name in theirs)


def test_lora_trains_little_and_is_merged(tiny_recipe, tiny_teacher, tmp_path):
    lora = {"model": str(tiny_teacher), "finetune": {**FAST, "epochs": 1, "lora": {"rank": 2}}}
    finished = run(tiny_recipe(teacher=lora), tmp_path, until="distill")
    merged = load_file(finished.path / "teacher" / "model.safetensors")
    before = load_file(tiny_teacher / "model.safetensors")
    assert not any("lora" in name for name in merged)
    body = {name.removeprefix("bert."): value for name, value in merged.items()}
    changed = {name for name in before if name in body and (before[name] != body[name]).any()}
    assert any("query" in name for name in changed)
    assert not any("embeddings" in name or "intermediate" in name for name in changed)


def test_auto_tries_a_few_and_keeps_the_best(tiny_recipe, tiny_teacher, tmp_path):
    recipe = tiny_recipe(teacher={"model": str(tiny_teacher), "finetune": "auto"})
    how = stages(run(recipe, tmp_path, until="teacher"))["teacher"]["how"]
    assert len(how["tried"]) == 3
    assert how["best_score"] == max(tried["selection_score"] for tried in how["tried"])
    best = max(how["tried"], key=lambda tried: tried["selection_score"])
    assert how["settings"]["learning_rate"] == best["learning_rate"]


def test_phases_follow_each_other(tiny_recipe, tmp_path):
    phases = [
        {"epochs": 1, "losses": [{"kind": "hidden"}], "keep": "last"},
        {"epochs": 2, "losses": [{"kind": "logits"}, {"kind": "labels"}]},
    ]
    trained = stages(run(tiny_recipe(distill={"phases": phases}), tmp_path, until="distill"))["distill"]["trained"]
    assert [len(phase["history"]) for phase in trained] == [1, 2]
    assert "hidden" in trained[0]["history"][0] and "logits" in trained[1]["history"][0]


def test_a_narrower_student_learns_through_projections(tiny_recipe, tmp_path):
    losses = [
        {"kind": "labels"},
        {"kind": "hidden"},
        {"kind": "hidden", "distance": "gram"},
        {"kind": "relation", "heads": 2},
    ]
    student = {"config": {"layers": 2, "hidden_size": 16, "attention_heads": 2}}
    recipe = tiny_recipe(student=student, distill={**FAST, "losses": losses})
    finished = run(recipe, tmp_path, until="distill")
    history = stages(finished)["distill"]["trained"][0]["history"]
    assert history[-1]["hidden"] < history[0]["hidden"]
    assert not any("projection" in name for name in load_file(finished.path / "model" / "model.safetensors"))


def test_an_earlier_run_is_a_teacher_or_a_student(tiny_recipe, tmp_path):
    first = nlp_distill.run(tiny_recipe(), out=tmp_path / "first", until="distill")
    second = tiny_recipe("second", teacher={"model": str(first.path)}, student={"model": str(first.path / "model")})
    finished = nlp_distill.run(second, "distill.losses=[{kind: logits}]", out=tmp_path / "second", until="distill")
    assert stages(finished)["teacher"]["how"]["finetuned"] is False
    assert stages(finished)["student"]["origin"]["kind"] == "checkpoint"


def test_seeds_change_the_run_and_the_same_seed_does_not(tiny_recipe, tmp_path):
    weights = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        done = nlp_distill.run(tiny_recipe(), f"seed={seed}", out=tmp_path / name, until="distill")
        weights.append(load_file(done.path / "model" / "model.safetensors")["classifier.weight"])
    assert (weights[0] == weights[1]).all() and (weights[0] != weights[2]).any()


def ok(arguments, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(list(map(str, arguments)))
    captured = capsys.readouterr()
    assert stopped.value.code == 0, captured.err
    return captured.out


def test_the_command_line_from_run_to_predict(tiny_recipe, tmp_path, capsys, monkeypatch):
    out = tmp_path / "run"
    shown = ok(["run", tiny_recipe(), "--out", out, "--control"], capsys)
    assert "control" in shown and "Recommended: student" in shown and f"nlp-distill predict {out}" in shown
    results = json.loads(ok(["run", out, "--json"], capsys))
    assert [variant["name"] for variant in results["variants"]] == ["teacher", "control", "student"]
    line = json.loads(ok(["predict", out, "good film"], capsys))
    assert line["inputs"] == "good film" and line["outputs"][0]["label"] in ("0", "1")
    monkeypatch.setattr("sys.stdin", iter(["good\n", "\n", "bad\n"]))
    assert len(ok(["predict", out], capsys).strip().split("\n")) == 2
    events = nlp_distill.RunDir(out).events()
    assert {event["event"] for event in events} >= {"stage", "metric", "data"}
    assert "glue-sst2  " in ok(["recipes", "list"], capsys)
    assert "kind: logits" in ok(["recipes", "show", "quickstart", "--resolved"], capsys)
    assert json.loads(ok(["recipes", "schema"], capsys))["title"] == "Recipe"
    assert "valid" in ok(["recipes", "validate", tiny_recipe()], capsys)


def test_strict_budgets_and_missing_trackers(tiny_recipe, tmp_path):
    recipe = tiny_recipe(budget={"size_mb": 0.0001})
    with pytest.raises(BudgetMissed, match="size_mb"):
        run(recipe, tmp_path, until="results", strict=True)
    assert run(recipe, tmp_path, until="results").results["budget"]["size_mb"]["met"] is False
    with pytest.raises(TrackerMissing, match="pip install wandb"):
        run(tiny_recipe(trackers=["wandb"]), tmp_path)


def test_redo_serves_nothing_that_the_new_settings_did_not_make(tiny_recipe, tmp_path):
    finished = run(tiny_recipe(control=True), tmp_path, "export=[{format: onnx, score_drop: 100}]", until="results")
    assert finished.results and (finished.path / "control" / "config.json").is_file()
    again = run(tiny_recipe(), tmp_path, "control=false", "export=[]", redo=True, until="export")
    assert again.results == {}
    assert not (again.path / "model" / "onnx").exists()
    assert not (again.path / "control" / "model.safetensors").exists()
    names = [v["name"] for v in run(tiny_recipe(), tmp_path, "export=[]", until="results").results["variants"]]
    assert names == ["teacher", "student"]


def test_a_student_checkpoint_that_changed_is_noticed(tiny_recipe, tmp_path):
    other = save_tiny(tmp_path / "other", num_hidden_layers=2)
    recipe = tiny_recipe(student={"model": str(other)}, distill={**FAST, "losses": [{"kind": "logits"}]})
    run(recipe, tmp_path, until="student")
    save_tiny(tmp_path / "other", num_hidden_layers=3)
    with pytest.raises(StageChanged, match="stage 'student'"):
        run(recipe, tmp_path, until="student")


def test_a_changed_precision_is_settled_again(tiny_recipe, tmp_path):
    first = run(tiny_recipe(), tmp_path, "precision=bf16", until="teacher")
    assert first.dir.manifest()["precision"]["precision"] == "bf16"
    again = run(tiny_recipe(), tmp_path, "precision=fp32", until="teacher", redo=True)
    assert again.dir.manifest()["precision"]["precision"] == "fp32"


def test_the_probe_takes_no_more_tokens_than_it_needs(tiny_recipe, tmp_path, monkeypatch):
    probed = []

    def probe(model, batch):
        probed.append(batch["input_ids"].shape)
        return {"precision": "fp32", "speedup": 0.5}

    monkeypatch.setattr(stages_of_a_run, "probe", probe)
    for name, most in (("many", 512), ("few", 30)):
        monkeypatch.setattr(stages_of_a_run, "PROBED", most)
        run(tiny_recipe(), tmp_path / name, "precision=auto", until="teacher")
    (many, width), (few, middle) = probed
    assert many == 32 and few == 30 // middle > 1 and middle <= width


def test_inputs_are_cut_at_the_models_limit(tiny_recipe, tmp_path):
    data = write(tmp_path / "d", lambda row: {"text": " ".join([row["text"]] * 12), "label": row["label"]})
    run(tiny_recipe(data={"dataset": str(data)}, max_length=1024), tmp_path, until="teacher")
