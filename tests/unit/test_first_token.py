"""A classifier's last block for [CLS] alone says, and learns, what the whole block does."""

import pytest
import torch

from nlp_distill.first_token import can_read_first, first_token_only
from nlp_distill.loop import Step
from nlp_distill.objective import Objective
from nlp_distill.signals import LiveTeacher, Request, capture, first_suffices
from nlp_distill.task import load_task
from nlp_distill.terms import AttentionTerm, HiddenTerm, LabelsTerm, LogitsTerm, RelationTerm
from nlp_distill.testing import ENCODERS, tiny_config, tiny_model, tiny_tokenizer

KINDS = [kind for kind in ENCODERS if kind not in ("albert", "deberta-v2")]
IDS = torch.tensor([[2, 7, 9, 12, 3], [2, 5, 3, 0, 0]])
BATCH = {"input_ids": IDS, "attention_mask": (IDS != 0).long(), "labels": torch.tensor([0, 1])}
LAST = ("encoder", 3)


def inputs():
    return {name: BATCH[name] for name in ("input_ids", "attention_mask")}


def task():
    found = load_task("classification")
    found.label_names = ["bad", "good"]
    found.labels = type("Labels", (), {"problem": "single_label"})()
    return found


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_answers_are_the_same_and_the_last_block_is_short(kind, implementation):
    model = tiny_model(kind).eval()
    if implementation == "sdpa" and not model._supports_sdpa:
        implementation = "eager"
    model.set_attn_implementation(implementation)
    read = Request(hidden=frozenset({LAST}), query=frozenset({LAST}), key=frozenset({LAST}), value=frozenset({LAST}))
    with torch.no_grad(), capture(model, read) as whole:
        expected = model(**inputs()).logits
    with torch.no_grad(), first_token_only(model), capture(model, read) as short:
        found = model(**inputs()).logits
    assert torch.allclose(found, expected, rtol=0, atol=1e-6)
    for name in ("hidden", "query"):
        ours, theirs = getattr(short, name)[LAST], getattr(whole, name)[LAST]
        assert ours.shape[1] == 1 and torch.allclose(ours, theirs[:, :1], rtol=0, atol=1e-6)
    for name in ("key", "value"):
        assert torch.equal(getattr(short, name)[LAST], getattr(whole, name)[LAST])
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in model.modules())


def test_architectures_are_plainly_with_it_or_not():
    assert [kind for kind in ENCODERS if can_read_first(tiny_config(kind))] == KINDS
    assert not can_read_first(tiny_config("bart"))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("narrow", [False, True])
def test_loss_and_gradients_are_the_same_with_either_teacher_and_student_shortened(kind, narrow):
    terms = [LabelsTerm(), LogitsTerm(), HiddenTerm(tokens="first"), RelationTerm(of=["value"], heads=2)]
    shape = {"distilbert": {"dim": 16, "hidden_dim": 32}}.get(kind, {"hidden_size": 16, "intermediate_size": 32})
    teacher = tiny_model(kind)
    found = []
    for short in (False, True):
        student = tiny_model(kind, **(shape if narrow else {}))
        objective = Objective(terms, task(), student.config, teacher.config, {"encoder": [0, 1, 2, 3]})
        source = LiveTeacher(teacher, task(), objective.teacher_request, None, first=short)
        step = Step(student, objective, None).eval()
        counts = {name: float(count) for name, count in objective.counts(BATCH).items()}
        if short:
            with first_token_only(student):
                loss, _ = step(BATCH, source.signal(BATCH), counts)
        else:
            loss, _ = step(BATCH, source.signal(BATCH), counts)
        loss.backward()
        found.append((loss, {name: p.grad for name, p in step.named_parameters() if p.grad is not None}))
    (one, whole), (two, shortened) = found
    assert torch.allclose(one, two, rtol=1e-6) and whole.keys() == shortened.keys()
    for name, gradient in whole.items():
        assert torch.allclose(gradient, shortened[name], rtol=1e-4, atol=1e-6), name


def suffices(terms, side="right"):
    config, tokenizer = tiny_config("bert"), tiny_tokenizer()
    tokenizer.padding_side = side
    objective = Objective(terms, task(), config, config, {"encoder": [0, 1, 2, 3]})
    return first_suffices(task(), config, objective.student_request, tokenizer)


def test_it_is_used_where_no_term_reads_another_token_of_the_last_layer():
    assert suffices([LabelsTerm(), LogitsTerm()])
    assert suffices([HiddenTerm(tokens="first"), RelationTerm(of=["key", "value"], heads=4)])
    assert not suffices([HiddenTerm()])
    assert not suffices([AttentionTerm()])
    assert not suffices([RelationTerm(heads=4)])
    assert not suffices([LabelsTerm()], side="left")
    config = tiny_config("bert")
    assert not first_suffices(load_task("question_answering"), config, Request(), tiny_tokenizer())
