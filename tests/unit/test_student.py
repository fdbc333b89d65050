"""A student's weights are its teacher's: all layers give the teacher back, a cut gives the teacher without the rest."""

import pytest
import torch
from torch import nn

from nlp_distill.errors import LayerMapInvalid, StudentShapeInvalid, StudentTooDeep
from nlp_distill.families import encoder_of, family_of
from nlp_distill.loop import Step, adamw
from nlp_distill.objective import Objective
from nlp_distill.recipe import Shape, Student, Training
from nlp_distill.signals import Request, may_share_encoder, same_encoder
from nlp_distill.student import cut_student, frozen, shaped_config, shaped_student
from nlp_distill.task import load_task
from nlp_distill.terms import LabelsTerm
from nlp_distill.testing import ENCODERS, SEQ2SEQ, tiny_config, tiny_model

AUTO, SEQ = "AutoModelForSequenceClassification", "AutoModelForSeq2SeqLM"
IDS = torch.tensor([[2, 7, 9, 12, 3], [2, 5, 3, 0, 0]])
MASK = (IDS != 0).long()
TARGETS = torch.tensor([[2, 8, 6], [2, 9, 4]])


def tiny(kind):
    return tiny_model(kind, SEQ) if kind in SEQ2SEQ else tiny_model(kind, num_labels=3)


def auto(kind):
    return SEQ if kind in SEQ2SEQ else AUTO


def logits(model):
    decoder = {"decoder_input_ids": TARGETS, "use_cache": False} if model.config.is_encoder_decoder else {}
    with torch.no_grad():
        return model(input_ids=IDS, attention_mask=MASK, **decoder).logits


def maps(kind, layers):
    return dict.fromkeys(("encoder", "decoder") if kind in SEQ2SEQ else ("encoder",), layers)


@pytest.mark.parametrize("kind", [*ENCODERS, *SEQ2SEQ])
def test_a_student_with_all_layers_is_its_teacher(kind):
    teacher = tiny(kind)
    built = cut_student(teacher, Student(layers=4), auto(kind))
    assert torch.equal(logits(built.model), logits(teacher))
    assert built.origin["copy_map"] == maps(kind, [0, 1, 2, 3])


def keep_blocks(teacher, stack, chosen):
    """Make a model run some of its own blocks only."""
    blocks = stack.blocks(teacher)
    if stack.shared:
        stack.set_count(teacher.config, len(chosen))
        return
    parent, name = stack.layers.rsplit(".", 1)
    kept = [blocks[i] for i in chosen]
    if stack.bias and "SelfAttention" in stack.bias:
        first, other = blocks[0].layer[0].SelfAttention, kept[0].layer[0].SelfAttention
        other.has_relative_attention_bias, other.relative_attention_bias = True, first.relative_attention_bias
    module = teacher.base_model.get_submodule(parent)
    setattr(module, name, nn.ModuleList(kept))
    if hasattr(module, "n_layers"):
        module.n_layers = len(chosen)


@pytest.mark.parametrize("kind", [*ENCODERS, *SEQ2SEQ])
@pytest.mark.parametrize("policy", ["alternate", "first", "last", [2, 0]])
def test_a_cut_is_the_teacher_run_with_those_blocks_only(kind, policy):
    teacher = tiny(kind)
    init = maps(kind, policy) if isinstance(policy, list) else policy
    built = cut_student(teacher, Student(layers=2, init=init), auto(kind))
    student_logits = logits(built.model)
    for stack in family_of(teacher.config).stacks:
        keep_blocks(teacher, stack, built.origin["copy_map"][stack.name])
        assert stack.count(built.model.config) == 2
    assert torch.equal(student_logits, logits(teacher))


@pytest.mark.parametrize("kind", ["t5", "bart", "encoder-decoder"])
def test_stacks_have_depths_of_their_own(kind):
    built = cut_student(tiny(kind), Student(decoder_layers=2), SEQ)
    assert built.origin["copy_map"] == {"encoder": [0, 1, 2, 3], "decoder": [1, 3]}
    assert [stack.count(built.model.config) for stack in family_of(built.model.config).stacks] == [4, 2]
    built = cut_student(tiny(kind), Student(encoder_layers=1, decoder_layers=3, init={"decoder": [0, 1, 3]}), SEQ)
    assert built.origin["copy_map"] == {"encoder": [3], "decoder": [0, 1, 3]}


def test_a_map_for_two_stacks_names_them():
    with pytest.raises(LayerMapInvalid, match="one list for a model with an encoder and a decoder"):
        cut_student(tiny("t5"), Student(layers=2, init=[0, 1]), SEQ)
    with pytest.raises(LayerMapInvalid, match="the teacher has no decoder"):
        cut_student(tiny("bert"), Student(decoder_layers=2), AUTO)


def test_the_teacher_is_untouched_and_shares_no_memory():
    teacher = tiny("bert")
    before = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
    student = cut_student(teacher, Student(layers=2), AUTO).model
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.add_(1)
    assert all(torch.equal(before[name], tensor) for name, tensor in teacher.state_dict().items())


def test_too_deep_and_bad_maps_are_refused():
    with pytest.raises(StudentTooDeep, match="has only 4; choose 1 to 4"):
        cut_student(tiny("bert"), Student(layers=5), AUTO)
    with pytest.raises(LayerMapInvalid):
        cut_student(tiny("bert"), Student(layers=2, init=[0, 9]), AUTO)


def test_shaped_students_are_narrower_and_come_from_the_seed():
    teacher = tiny("bert")
    shape = Shape(layers=2, hidden_size=16, attention_heads=2)
    one, two, other = (shaped_student(teacher, shape, AUTO, seed).model for seed in (1, 1, 2))
    assert one.config.hidden_size == 16 and one.config.intermediate_size == 64
    deberta = tiny("deberta-v2")
    deberta.config.pooler_hidden_size = deberta.config.hidden_size
    assert logits(shaped_student(deberta, shape, AUTO, 1).model).isfinite().all()
    assert torch.equal(logits(one), logits(two))
    assert not torch.equal(logits(one), logits(other))


def test_building_does_not_touch_the_global_generator():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    shaped_student(tiny("bert"), Shape(layers=1, hidden_size=16, attention_heads=2), AUTO, 3)
    assert torch.equal(torch.rand(3), expected)
    assert tiny_config("bert").num_hidden_layers == 4


def test_a_shape_that_gives_layers_alone_keeps_the_width_of_heads():
    """Flan-T5's and mT5's small: six heads of 64 on a width of 512."""
    teacher = tiny_config("t5", d_model=32, num_heads=6, d_kv=8)
    shaped = shaped_config(teacher, Shape(layers=1))
    assert (shaped.num_heads, shaped.d_kv, shaped.num_layers) == (6, 8, 1)
    with pytest.raises(StudentShapeInvalid):
        shaped_config(teacher, Shape(layers=1, hidden_size=32))


@pytest.mark.parametrize("model_type", ["encoder-decoder", "bart", "t5"])
def test_frozen_embeddings_are_those_of_both_stacks(model_type):
    model = tiny_model(model_type, "AutoModelForSeq2SeqLM")
    tables = [model.get_encoder().get_input_embeddings(), model.get_decoder().get_input_embeddings()]
    with frozen(model, ["embeddings"]):
        assert not any(table.weight.requires_grad for table in tables)
        held = {id(parameter) for group in adamw(model, Training()).param_groups for parameter in group["params"]}
        assert held and not any(id(table.weight) in held for table in tables)
    assert all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("model_type", ["bart", "t5"])
def test_a_classifier_with_a_decoder_trains_and_its_encoder_can_be_frozen(model_type):
    """Its class has no `get_encoder` of its own."""
    model = tiny_model(model_type, "AutoModelForSequenceClassification")
    config = model.config
    with frozen(model, ["encoder", "embeddings"]):
        step = Step(model, Objective([LabelsTerm()], load_task("classification"), config, None, {}), None).train()
        assert not encoder_of(step.student).training and step.student.training
        assert may_share_encoder(model, Request(logits=True)) and same_encoder(model, model)
    assert all(parameter.requires_grad for parameter in model.parameters())
