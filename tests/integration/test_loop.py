"""The loop on tiny models: what may not change a training, and whether distillation does anything at all."""

import copy
import math
from dataclasses import replace

import pytest
import torch
from accelerate import Accelerator

from nlp_distill.checkpoint import CheckpointFolder
from nlp_distill.cutting import slices
from nlp_distill.errors import Interrupted, LossNotFinite
from nlp_distill.loading import load_model, load_tokenizer
from nlp_distill.loop import Setting, learning_rate, selection_score, train
from nlp_distill.objective import Objective
from nlp_distill.recipe import Data, Student, Training
from nlp_distill.rows import Rows
from nlp_distill.signals import LiveTeacher, Signal
from nlp_distill.student import cut_student
from nlp_distill.task import load_task
from nlp_distill.terms import HiddenTerm, LabelsTerm, LogitsTerm
from nlp_distill.testing import write_rows

AUTO = "AutoModelForSequenceClassification"
SETTINGS = Training(epochs=2, learning_rate=2e-3, batch_size=16, checkpoint_minutes=1000)


class World:
    """Tiny data, tokenizer and teacher, ready to train."""

    def __init__(self, folder, teacher_folder, dropout=0.0):
        self.task = load_task("classification")
        spec = Data(dataset=str(write_rows(folder, train=400, validation=100)), selection=40)
        cut = slices(self.task.load_data(spec), spec)
        tokenizer = load_tokenizer(teacher_folder)
        self.rows, self.selection, self.evaluation = (
            Rows(self.task.features(raw, tokenizer, 64), raw) for raw in (cut.train, cut.selection, cut.evaluation)
        )
        self.setting = Setting(self.task, tokenizer, Accelerator(cpu=True), seed=0)
        self.model = load_model(
            teacher_folder,
            AUTO,
            hidden_dropout_prob=dropout,
            attention_probs_dropout_prob=dropout,
            **self.task.config_settings(),
        )
        self.folder = folder

    def labels(self, model, settings=SETTINGS, selection=True, key="k", **setting):
        objective = Objective([LabelsTerm()], self.task, model.config)
        where = replace(self.setting, **setting)
        checkpoints = CheckpointFolder(self.folder / f"checkpoints-{key}", key)
        chosen = self.selection if selection else None
        return train(model, objective, None, self.rows, chosen, settings, where, checkpoints, "test")

    def distil(self, key, student, teacher, source, terms, settings):
        objective = Objective(terms, self.task, student.config, teacher.config, {"encoder": [1, 3]})
        live = source(LiveTeacher(teacher, self.task, objective.teacher_request, None))
        checkpoints = CheckpointFolder(self.folder / f"checkpoints-{key}", key)
        return train(student, objective, live, self.rows, self.selection, settings, self.setting, checkpoints, "distil")


@pytest.fixture
def world(tmp_path, tiny_teacher):
    return World(tmp_path, tiny_teacher)


def weights(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(one, two):
    return all(torch.equal(one[name], two[name]) for name in one)


def test_it_learns(world):
    before = selection_score(world.model, world.evaluation, world.setting)[0]
    trained = world.labels(world.model, SETTINGS.model_copy(update={"epochs": 8}))
    after = selection_score(world.model, world.evaluation, world.setting)[0]
    assert after > max(85, before)
    assert trained.best_score == max(entry["selection_score"] for entry in trained.history)


def test_the_same_seed_gives_the_same_bits_and_another_does_not(world):
    models = [copy.deepcopy(world.model) for _ in range(3)]
    for number, (model, seed) in enumerate(zip(models, (0, 0, 1), strict=True)):
        world.labels(model, key=str(number), seed=seed)
    assert same(weights(models[0]), weights(models[1]))
    assert not same(weights(models[0]), weights(models[2]))


def test_neither_evaluation_nor_the_global_generator_changes_a_training(tmp_path, tiny_teacher):
    world = World(tmp_path, tiny_teacher, dropout=0.2)
    last = SETTINGS.model_copy(update={"keep": "last"})
    one, two = copy.deepcopy(world.model), copy.deepcopy(world.model)
    torch.manual_seed(1)
    world.labels(one, last, selection=True, key="1")
    torch.manual_seed(2)
    drawn = torch.rand(1)
    torch.manual_seed(2)
    world.labels(two, last, selection=False, key="2")
    assert same(weights(one), weights(two))
    assert torch.equal(torch.rand(1), drawn)


def test_accumulation_does_not_change_the_trajectory(world):
    one, two = copy.deepcopy(world.model), copy.deepcopy(world.model)
    whole = world.labels(one, SETTINGS, key="1")
    cut = world.labels(two, SETTINGS.model_copy(update={"micro_batch_tokens": 30}), key="2")
    for a, b in zip(whole.history, cut.history, strict=True):
        assert a["labels"] == pytest.approx(b["labels"], rel=1e-5)
    assert not same(weights(one), weights(two))  # it really was cut: sums were added in another order


@pytest.mark.parametrize("stop_at", [3, 25])
def test_a_stopped_training_resumes_to_the_same_bits(tmp_path, tiny_teacher, stop_at):
    world = World(tmp_path, tiny_teacher, dropout=0.2)
    straight, stopped = copy.deepcopy(world.model), copy.deepcopy(world.model)
    expected = world.labels(straight, key="1")
    calls = []

    def stop():
        calls.append(1)
        return len(calls) == stop_at

    with pytest.raises(Interrupted, match=f"step {stop_at} "):
        world.labels(stopped, key="2", stop=stop)
    fresh = copy.deepcopy(world.model)
    found = world.labels(fresh, key="2")
    assert same(weights(straight), weights(fresh))
    assert found == expected


def test_a_stop_at_the_end_of_an_epoch_loses_no_evaluation(world):
    per_epoch = len(world.rows.lengths) // 16
    straight, fresh = copy.deepcopy(world.model), copy.deepcopy(world.model)
    expected = world.labels(straight, key="1")
    calls = []
    with pytest.raises(Interrupted):
        world.labels(copy.deepcopy(world.model), key="2", stop=lambda: calls.append(1) or len(calls) == per_epoch)
    assert world.labels(fresh, key="2") == expected
    assert same(weights(straight), weights(fresh))


def test_damaged_checkpoints_are_moved_aside_and_the_one_before_is_used(world):
    every = SETTINGS.model_copy(update={"checkpoint_minutes": 0})
    straight, fresh = copy.deepcopy(world.model), copy.deepcopy(world.model)
    world.labels(straight, key="1")
    calls = []
    with pytest.raises(Interrupted):
        world.labels(copy.deepcopy(world.model), every, key="2", stop=lambda: calls.append(1) or len(calls) == 9)
    folder = world.folder / "checkpoints-2"
    kept = sorted(folder.glob("step-*"))
    assert [path.name for path in kept] == ["step-00000008", "step-00000009"]
    (kept[-1] / "weights.safetensors").write_bytes(b"torn")
    warned = []
    world.labels(fresh, every, key="2", notify=lambda kind, **fields: warned.append((kind, fields)))
    assert ("resumed", {"stage": "test", "step": 8}) in warned
    assert any(kind == "warning" and "step-00000009" in fields["message"] for kind, fields in warned)
    assert same(weights(straight), weights(fresh))


def test_another_key_never_resumes(world):
    calls = []
    with pytest.raises(Interrupted):
        world.labels(copy.deepcopy(world.model), key="1", stop=lambda: calls.append(1) or len(calls) == 3)
    assert CheckpointFolder(world.folder / "checkpoints-1", "1").load().state["step"] == 3
    assert CheckpointFolder(world.folder / "checkpoints-1", "2").load() is None


def test_early_stopping_keeps_the_best_epoch(world):
    settings = SETTINGS.model_copy(update={"epochs": 40, "patience": 2, "learning_rate": 0.01})
    trained = world.labels(world.model, settings)
    assert len(trained.history) < 40
    assert len(trained.history) - trained.best_epoch == 2
    assert selection_score(world.model, world.selection, world.setting)[0] == trained.best_score


def test_a_loss_that_is_not_finite_names_the_term(world):
    with torch.no_grad():
        world.model.classifier.weight.fill_(math.inf)
    with pytest.raises(LossNotFinite, match="term 'labels'"):
        world.labels(world.model)


def test_bf16_trains_close_to_fp32(world):
    one, two = copy.deepcopy(world.model), copy.deepcopy(world.model)
    fp32 = world.labels(one, key="1")
    bf16 = world.labels(two, key="2", autocast=torch.bfloat16)
    assert fp32.history[-1]["labels"] == pytest.approx(bf16.history[-1]["labels"], rel=0.05)
    assert fp32.history[-1]["labels"] != bf16.history[-1]["labels"]
    assert next(two.parameters()).dtype == torch.float32


class Shuffled:
    """A teacher whose signals belong to other examples of the batch."""

    stored = False

    def __init__(self, source):
        self.source = source

    def signal(self, batch):
        signal = self.source.signal(batch)
        roll = {name: value.roll(1, dims=0) for name, value in signal.logits.items()}
        return Signal(logits=roll, hidden={layer: value.roll(1, dims=0) for layer, value in signal.hidden.items()})


def test_a_student_of_shuffled_signals_is_worse(world):
    """Distillation that would not notice a wrong teacher does nothing."""
    world.labels(world.model, SETTINGS.model_copy(update={"epochs": 10}), key="teacher")
    settings = SETTINGS.model_copy(update={"epochs": 6, "keep": "last"})
    scores = {}
    for name, source in (("true", lambda live: live), ("shuffled", Shuffled)):
        student = cut_student(world.model, Student(layers=2), AUTO).model
        torch.nn.init.zeros_(student.classifier.weight)
        terms = [LogitsTerm(temperature=1.0), HiddenTerm(weight=0.1)]
        world.distil(name, student, world.model, source, terms, settings)
        scores[name] = selection_score(student, world.evaluation, world.setting)[0]
    assert scores["true"] > scores["shuffled"] + 10
    assert scores["true"] > 85


@pytest.mark.parametrize("schedule", ["linear", "cosine", "constant"])
def test_schedules_warm_up_and_end(schedule):
    settings = Training(schedule=schedule, warmup=0.1, learning_rate=1.0)
    rates = [learning_rate(settings, step, 100) for step in range(100)]
    assert rates[0] == pytest.approx(1 / 11)
    assert max(rates) == 1.0 and rates.index(1.0) == 10
    assert rates[-1] == 1.0 if schedule == "constant" else rates[-1] < 0.02
    assert all(rate > 0 for rate in rates)
