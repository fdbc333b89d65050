"""Hooked signals against what the models themselves say."""

import pytest
import torch

from nlp_distill.errors import SignalMissing
from nlp_distill.losses import attention_scores
from nlp_distill.signals import LiveTeacher, Request, capture, check_request
from nlp_distill.testing import tiny_model

IDS = torch.tensor([[2, 7, 9, 12, 3], [2, 5, 3, 0, 0]])
MASK = (IDS != 0).long()
BATCH = {"input_ids": IDS, "attention_mask": MASK, "labels": torch.tensor([0, 1])}


class FakeTask:
    @staticmethod
    def logits(outputs):
        return {"logits": outputs.logits}


@pytest.mark.parametrize("kind", ["bert", "roberta", "distilbert"])
@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_hidden_is_the_output_of_block_i(kind, implementation):
    model = tiny_model(kind)
    model.set_attn_implementation(implementation)
    with torch.no_grad(), capture(model, Request(hidden=frozenset({0, 3}))) as signal:
        outputs = model(input_ids=IDS, attention_mask=MASK, output_hidden_states=True)
    assert torch.equal(signal.hidden[0], outputs.hidden_states[1])
    assert torch.equal(signal.hidden[3], outputs.hidden_states[4])


@pytest.mark.parametrize("kind", ["bert", "roberta", "distilbert"])
def test_softmax_of_the_scores_is_the_eager_attention(kind):
    model = tiny_model(kind)
    with torch.no_grad(), capture(model, Request(query=frozenset({1}), key=frozenset({1}))) as signal:
        model(input_ids=IDS, attention_mask=MASK)
    scores = attention_scores(signal.query[1], signal.key[1], model.config.num_attention_heads)
    ours = scores.masked_fill(MASK[:, None, None, :] == 0, float("-inf")).softmax(-1)
    model.set_attn_implementation("eager")
    with torch.no_grad():
        theirs = model(input_ids=IDS, attention_mask=MASK, output_attentions=True).attentions[1]
    assert torch.allclose(ours, theirs, atol=1e-6)


def test_hooks_are_removed_even_after_an_error():
    model = tiny_model("bert")
    with pytest.raises(ZeroDivisionError), capture(model, Request(hidden=frozenset({0}))):
        raise ZeroDivisionError
    assert not any(module._forward_hooks for module in model.modules())


def test_only_what_is_asked_for_is_kept():
    model = tiny_model("bert")
    with capture(model, Request(value=frozenset({2}))) as signal:
        model(input_ids=IDS, attention_mask=MASK)
    assert list(signal.value) == [2]
    assert not (signal.hidden or signal.query or signal.key)


def test_a_live_teacher_gives_no_gradients_and_stays_in_evaluation_mode():
    model = tiny_model("bert", hidden_dropout_prob=0.5).train()
    teacher = LiveTeacher(model, FakeTask(), Request(logits=True, hidden=frozenset({1})), None)
    one, two = teacher.signal(BATCH), teacher.signal(BATCH)
    assert torch.equal(one.logits["logits"], two.logits["logits"])
    assert not one.hidden[1].requires_grad
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_layers_that_are_not_there_are_refused_at_construction():
    with pytest.raises(SignalMissing, match="the teacher has no layer 4"):
        LiveTeacher(tiny_model("bert"), FakeTask(), Request(hidden=frozenset({4})), None)
    check_request(tiny_model("bert"), Request(hidden=frozenset({3})), "student")
