import math

import pytest
import torch

from nlp_distill import losses
from nlp_distill import objective as objective_module
from nlp_distill.errors import SignalMissing
from nlp_distill.objective import Objective
from nlp_distill.signals import LiveTeacher, Request, capture, model_inputs
from nlp_distill.task import load_task
from nlp_distill.terms import AttentionTerm, HiddenTerm, LabelsTerm, LogitsTerm, RelationTerm
from nlp_distill.testing import tiny_config, tiny_model
from nlp_distill_tasks.classification.labels import Labels

TERMS = [
    LogitsTerm(),
    LabelsTerm(),
    HiddenTerm(),
    HiddenTerm(distance="gram"),
    AttentionTerm(),
    RelationTerm(heads=4),
]


@pytest.fixture
def task():
    task = load_task("classification")
    task.labels, task.label_names, task.primary_metric = (
        Labels("single_label", ["a", "b"]),
        ["a", "b"],
        "accuracy",
    )
    return task


def batch(rows=slice(None)):
    ids = torch.tensor([[2, 7, 9, 12, 3], [2, 5, 3, 0, 0], [2, 9, 8, 3, 0], [2, 6, 6, 6, 3]])[rows]
    labels = torch.tensor([0, 1, 1, 0])[rows]
    return {"input_ids": ids, "attention_mask": (ids != 0).long(), "labels": labels}


def places(*layers):
    return frozenset(("encoder", layer) for layer in layers)


def sums(objective, student, teacher, data):
    with capture(student, objective.student_request) as signal:
        outputs = student(**model_inputs(data))
    return objective.sums(outputs, signal, teacher.signal(data), data)


def test_it_asks_for_just_what_its_terms_need(task):
    config = tiny_config("bert")
    assert not Objective([LabelsTerm()], task, config).teacher_request
    objective = Objective([LogitsTerm()], task, config, config, {"encoder": [1, 3]})
    assert objective.teacher_request == Request(logits=True)
    objective = Objective(TERMS, task, config, config, {"encoder": [1, 3]})
    both, last = places(1, 3), places(3)
    assert objective.teacher_request == Request(True, hidden=both, query=both, key=both, value=last)
    assert objective.student_request == Request(True, places(0, 1), places(0, 1), places(0, 1), places(1))


def test_sums_and_counts_of_a_step_do_not_depend_on_how_it_is_cut(task):
    student, teacher_model = tiny_model("bert", num_hidden_layers=2), tiny_model("bert", num_hidden_layers=4)
    objective = Objective(TERMS, task, student.config, teacher_model.config, {"encoder": [1, 3]})
    teacher = LiveTeacher(teacher_model, task, objective.teacher_request, None)
    whole, whole_counts = sums(objective, student, teacher, batch()), objective.counts(batch())
    parts = [sums(objective, student, teacher, batch([i])) for i in range(4)]
    counts = [objective.counts(batch([i])) for i in range(4)]
    for name in objective.terms:
        assert torch.allclose(whole[name], sum(part[name] for part in parts), rtol=1e-5, atol=1e-6), name
        assert whole_counts[name] == sum(count[name] for count in counts), name
    assert whole_counts["labels"] == 4 and whole_counts["hidden"] == 17


def test_a_student_that_is_its_teacher_has_no_distillation_loss(task):
    model = tiny_model("bert")
    objective = Objective(
        [t for t in TERMS if t.kind != "labels"], task, model.config, model.config, {"encoder": [0, 1, 2, 3]}
    )
    teacher = LiveTeacher(tiny_model("bert"), task, objective.teacher_request, None)
    assert all(value.detach().abs() < 1e-5 for value in sums(objective, model, teacher, batch()).values())


def test_narrower_students_get_projections_that_are_not_theirs(task):
    student = tiny_model("bert", hidden_size=16, num_hidden_layers=2)
    teacher_model = tiny_model("bert")
    terms = [HiddenTerm(), HiddenTerm(distance="gram"), AttentionTerm(), RelationTerm(heads=4)]
    objective = Objective(terms, task, student.config, teacher_model.config, {"encoder": [1, 3]})
    assert sorted(objective.projections) == ["hidden_0", "hidden_1"]
    assert not any("projection" in name for name in student.state_dict())
    teacher = LiveTeacher(teacher_model, task, objective.teacher_request, None)
    objective.total(sums(objective, student, teacher, batch()), dict.fromkeys(objective.terms, 1.0)).backward()
    assert all(p.grad is not None for p in objective.projections.parameters())


def test_a_term_about_first_tokens_reads_nothing_else(task):
    student, teacher_model = tiny_model("bert", num_hidden_layers=2), tiny_model("bert")
    objective = Objective([HiddenTerm(tokens="first")], task, student.config, teacher_model.config, {"encoder": [1, 3]})
    assert objective.teacher_request == Request(first=places(1, 3))
    assert objective.counts(batch())["hidden"] == 4
    teacher = LiveTeacher(teacher_model, task, objective.teacher_request, None)
    with capture(student, objective.student_request) as signal:
        outputs = student(**model_inputs(batch()))
    theirs = teacher.signal(batch())
    expected = [(signal.hidden["encoder", s] - theirs.hidden["encoder", t])[:, 0].square() for s, t in ((0, 1), (1, 3))]
    found = objective.sums(outputs, signal, theirs, batch())["hidden"]
    assert torch.allclose(found, torch.stack(expected).mean(-1).sum(1).mean())
    for tensor in theirs.hidden.values():
        tensor[:, 1:] = 7.0
    assert torch.equal(objective.sums(outputs, signal, theirs, batch())["hidden"], found)
    with pytest.raises(ValueError, match="tokens: all"):
        HiddenTerm(distance="gram", tokens="first")


def test_weights_scale_terms(task):
    model = tiny_model("bert")
    one = Objective([LabelsTerm()], task, model.config)
    three = Objective([LabelsTerm(weight=3)], task, model.config)
    values = {"labels": torch.tensor(2.0)}
    assert three.total(values, {"labels": 4.0}) == 3 * one.total(values, {"labels": 4.0}) == 1.5


@pytest.mark.parametrize(
    ("term", "student", "words"),
    [
        (AttentionTerm(), {"num_attention_heads": 2}, "2 attention heads, the teacher 4"),
        (RelationTerm(heads=12), {}, "12 relation heads do not divide"),
    ],
)
def test_terms_that_a_pair_cannot_give_are_refused(task, term, student, words):
    with pytest.raises(SignalMissing, match=words):
        Objective([term], task, tiny_config("bert", **student), tiny_config("bert"), {"encoder": [3]})


def test_terms_need_a_teacher(task):
    with pytest.raises(SignalMissing, match="no teacher"):
        Objective([LogitsTerm()], task, tiny_config("bert"))


def test_terms_of_attention_by_examples_change_nothing(task, monkeypatch):
    student, teacher = tiny_model(layers=2).eval(), tiny_model(layers=4)
    terms = [AttentionTerm(), AttentionTerm(distance="kl"), RelationTerm(heads=4, of=("query", "value"))]
    objective = Objective(terms, task, student.config, teacher.config, {"encoder": [1, 3]})
    live = LiveTeacher(teacher, task, objective.teacher_request, None)
    found = []
    for scores in (losses.SCORES, 1):
        monkeypatch.setattr(losses, "SCORES", scores)
        student.zero_grad()
        said = sums(objective, student, live, batch())
        sum(said.values()).backward()
        found.append([*said.values(), *(p.grad.clone() for p in student.parameters() if p.grad is not None)])
    for whole, cut in zip(*found, strict=True):
        assert torch.allclose(whole, cut, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("kind", "of", "used"), [("bert", "self", 2), ("bart", "self", 2), ("bart", "cross", 2)])
def test_scores_of_long_rows_are_never_made(task, kind, of, used, monkeypatch):
    """The same sums and gradients either way; a decoder's queries read other keys each, so it keeps its scores."""
    if kind == "bert":
        pair, supervise = [tiny_model(kind, num_hidden_layers=n).eval() for n in (2, 4)], {"encoder": [1, 3]}
    else:
        task, auto = load_task("seq2seq"), "AutoModelForSeq2SeqLM"
        pair = [tiny_model(kind, auto, decoder_layers=n, encoder_layers=n).eval() for n in (2, 4)]
        supervise = {"encoder": [1, 3], "decoder": [1, 3]}
    student, teacher = pair
    objective = Objective([AttentionTerm(of=of)], task, student.config, teacher.config, supervise)
    live, data = LiveTeacher(teacher, task, objective.teacher_request, None), batch()
    if kind == "bart":
        targets = torch.tensor([[2, 8, 6, 4], [2, 9, 3, 0], [2, 5, 4, 3], [2, 7, 7, 3]])
        data |= {"decoder_input_ids": targets, "decoder_attention_mask": (targets != 0).long(), "labels": targets}
    calls, by_width = [], objective_module.attention_mse_by_width
    monkeypatch.setattr(
        objective_module, "attention_mse_by_width", lambda *given, **how: calls.append(1) or by_width(*given, **how)
    )
    found = []
    for long in (math.inf, 0):
        monkeypatch.setattr(losses, "LONG", long)
        student.zero_grad()
        said = sums(objective, student, live, data)
        sum(said.values()).backward()
        found.append([*said.values(), *(p.grad.clone() for p in student.parameters() if p.grad is not None)])
        assert len(calls) == (used if long == 0 else 0)
    for whole, cut in zip(*found, strict=True):
        assert torch.allclose(whole, cut, rtol=1e-3, atol=1e-6)


def test_biased_scores_are_not_products_of_widths(task, monkeypatch):
    monkeypatch.setattr(losses, "LONG", 0)
    monkeypatch.setattr(objective_module, "attention_mse_by_width", None)
    student, teacher = (tiny_model("mpnet", num_hidden_layers=n).eval() for n in (2, 4))
    objective = Objective([AttentionTerm()], task, student.config, teacher.config, {"encoder": [1, 3]})
    assert sums(objective, student, LiveTeacher(teacher, task, objective.teacher_request, None), batch())
