"""Hooked signals against what the models themselves say."""

import pytest
import torch

from nlp_distill.errors import SignalMissing
from nlp_distill.families import family_of
from nlp_distill.losses import attention_scores
from nlp_distill.signals import LiveTeacher, Request, capture, check_request
from nlp_distill.testing import ENCODERS, SEQ2SEQ, tiny_config, tiny_model

IDS = torch.tensor([[2, 7, 9, 12, 3], [2, 5, 3, 0, 0]])
MASK = (IDS != 0).long()
TARGETS = torch.tensor([[2, 8, 6], [2, 9, 4]])
BATCH = {"input_ids": IDS, "attention_mask": MASK, "labels": torch.tensor([0, 1])}


def at(*layers):
    return frozenset(("encoder", layer) for layer in layers)


class FakeTask:
    @staticmethod
    def logits(outputs, batch):
        return {"logits": outputs.logits}


def forward(model, **settings):
    decoder = {"decoder_input_ids": TARGETS, "use_cache": False} if model.config.is_encoder_decoder else {}
    with torch.no_grad():
        return model(input_ids=IDS, attention_mask=MASK, **decoder, **settings)


def tiny(kind):
    return tiny_model(kind, "AutoModelForSeq2SeqLM") if kind in SEQ2SEQ else tiny_model(kind)


def stacks(kind):
    return ("encoder", "decoder") if kind in SEQ2SEQ else ("encoder",)


@pytest.mark.parametrize("kind", [*ENCODERS, *SEQ2SEQ])
@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_hidden_is_the_output_of_block_i(kind, implementation):
    model = tiny(kind)
    if implementation == "sdpa" and not model._supports_sdpa:
        implementation = "eager"
    model.set_attn_implementation(implementation)
    wanted = frozenset((stack, layer) for stack in stacks(kind) for layer in (0, 2))
    with capture(model, Request(hidden=wanted)) as signal:
        outputs = forward(model, output_hidden_states=True)
    assert set(signal.hidden) == wanted
    for stack, layer in wanted:
        name = "hidden_states" if stacks(kind) == ("encoder",) else f"{stack}_hidden_states"
        assert torch.equal(signal.hidden[stack, layer], getattr(outputs, name)[layer + 1])


SCORED = [kind for kind in (*ENCODERS, *SEQ2SEQ) if kind != "deberta-v2"]


@pytest.mark.parametrize("kind", SCORED)
def test_softmax_of_the_scores_is_the_eager_attention(kind):
    model = tiny(kind)
    model.set_attn_implementation("eager")
    for stack in family_of(model.config).stacks:
        at_two = frozenset({(stack.name, 2)})
        with capture(model, Request(query=at_two, key=at_two, bias=frozenset({stack.name}))) as signal:
            outputs = forward(model, output_attentions=True)
        scores = attention_scores(
            signal.query[stack.name, 2],
            signal.key[stack.name, 2],
            stack.head_count(model.config),
            stack.scores == "scaled",
            signal.bias.get(stack.name),
        )
        if stack.name == "encoder":
            scores = scores.masked_fill(MASK[:, None, None, :] == 0, float("-inf"))
        else:
            scores = scores.masked_fill(~torch.ones(3, 3).bool().tril(), float("-inf"))
        maps = outputs.attentions if stacks(kind) == ("encoder",) else getattr(outputs, f"{stack.name}_attentions")
        assert torch.allclose(scores.softmax(-1), maps[2], atol=1e-6)


@pytest.mark.parametrize("kind", SEQ2SEQ)
def test_softmax_of_the_cross_scores_is_the_eager_cross_attention(kind):
    model = tiny(kind)
    model.set_attn_implementation("eager")
    stack = family_of(model.config).stack("decoder")
    place = frozenset({("decoder", 1)})
    with capture(model, Request(cross_query=place, cross_key=place)) as signal:
        outputs = forward(model, output_attentions=True)
    query, key = signal.cross_query["decoder", 1], signal.cross_key["decoder", 1]
    scores = attention_scores(query, key, stack.head_count(model.config), stack.scores == "scaled")
    ours = scores.masked_fill(MASK[:, None, None, :] == 0, float("-inf")).softmax(-1)
    assert torch.allclose(ours, outputs.cross_attentions[1], atol=1e-6)


def test_hooks_are_removed_even_after_an_error():
    model = tiny_model("bert")
    with pytest.raises(ZeroDivisionError), capture(model, Request(hidden=at(0))):
        raise ZeroDivisionError
    assert not any(module._forward_hooks for module in model.modules())


def test_only_what_is_asked_for_is_kept():
    model = tiny_model("bert")
    with capture(model, Request(value=at(2))) as signal:
        model(input_ids=IDS, attention_mask=MASK)
    assert list(signal.value) == [("encoder", 2)]
    assert not (signal.hidden or signal.query or signal.key)


def test_a_live_teacher_gives_no_gradients_and_stays_in_evaluation_mode():
    model = tiny_model("bert", hidden_dropout_prob=0.5).train()
    teacher = LiveTeacher(model, FakeTask(), Request(logits=True, hidden=at(1)), None)
    one, two = teacher.signal(BATCH), teacher.signal(BATCH)
    assert torch.equal(one.logits["logits"], two.logits["logits"])
    assert not one.hidden["encoder", 1].requires_grad
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_layers_that_are_not_there_are_refused_at_construction():
    with pytest.raises(SignalMissing, match="the teacher has no layer 4"):
        LiveTeacher(tiny_model("bert"), FakeTask(), Request(hidden=at(4)), None)
    check_request(tiny_config("bert"), Request(hidden=at(3)), "student")
