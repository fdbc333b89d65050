"""A student's frozen encoder that is its teacher's is run once, and nothing else changes."""

import pytest
import torch

from nlp_distill.loop import Step
from nlp_distill.objective import Objective
from nlp_distill.recipe import Student
from nlp_distill.signals import LiveTeacher, Request, may_share_encoder, same_encoder
from nlp_distill.student import cut_student, frozen
from nlp_distill.task import load_task
from nlp_distill.terms import AttentionTerm, HiddenTerm, LabelsTerm, LogitsTerm
from nlp_distill.testing import SEQ2SEQ, WORDS, tiny_model

DECODER = (LogitsTerm(), LabelsTerm(), HiddenTerm(stacks=["decoder"]), AttentionTerm(of="cross"))


def batch():
    torch.manual_seed(0)
    ids, labels = (torch.randint(4, len(WORDS), (4, length)) for length in (9, 6))
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "labels": labels,
        "decoder_input_ids": labels.roll(1),
    }


def trained_once(kind, terms, share, freeze=("encoder",), **settings):
    """Whether the encoder was shared, and gradients of one step."""
    task = load_task("seq2seq")
    teacher = tiny_model(kind, task.auto_class, **settings)
    student = cut_student(teacher, Student(decoder_layers=2), task.auto_class).model
    layers = {"encoder": [0, 1, 2, 3], "decoder": [1, 3]}
    objective = Objective(terms, task, student.config, teacher.config, layers)
    with frozen(student, freeze):
        may = may_share_encoder(student, objective.student_request)
        shared = share and may and same_encoder(student, teacher)
        source = LiveTeacher(teacher, task, objective.teacher_request | Request(encoded=shared), None)
        step = Step(student, objective, None)
        step.train()
        torch.manual_seed(1)
        rows = batch()
        counts = {name: float(count) for name, count in objective.counts(rows).items()}
        loss, _ = step(rows, source.signal(rows), counts)
        loss.backward()
    return shared, {name: p.grad for name, p in student.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("kind", SEQ2SEQ)
def test_gradients_are_the_same_to_the_bit(kind):
    drop = {} if kind == "encoder-decoder" else {"dropout_rate" if "t5" in kind else "dropout": 0.1}
    (_, apart), (shared, together) = (trained_once(kind, DECODER, share, **drop) for share in (False, True))
    assert shared and apart.keys() == together.keys() and apart
    assert all(torch.equal(apart[name], together[name]) for name in apart)


def test_an_encoder_that_trains_or_that_a_term_reads_is_not_shared():
    assert not trained_once("t5", DECODER, True, freeze=("embeddings",))[0]
    assert not trained_once("t5", [LogitsTerm(), HiddenTerm()], True)[0]
    assert not trained_once("t5", [LogitsTerm(), HiddenTerm(tokens="first")], True)[0]
