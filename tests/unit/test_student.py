"""A student's weights are its teacher's: all layers give the teacher back, a cut gives the teacher without the rest."""

import pytest
import torch
from torch import nn

from nlp_distill.errors import LayerMapInvalid, StudentTooDeep
from nlp_distill.families import family_of
from nlp_distill.recipe import Shape
from nlp_distill.student import cut_student, shaped_student
from nlp_distill.testing import tiny_config, tiny_model

AUTO = "AutoModelForSequenceClassification"
FAMILIES = ["bert", "roberta", "xlm-roberta", "distilbert"]
IDS = torch.tensor([[2, 7, 9, 12, 3], [2, 5, 3, 0, 0]])
MASK = (IDS != 0).long()


def tiny(kind):
    if kind != "xlm-roberta":
        return tiny_model(kind, num_labels=3)
    from transformers import CONFIG_MAPPING

    from nlp_distill.loading import new_model
    from nlp_distill.testing import SHAPES

    return new_model(CONFIG_MAPPING[kind](vocab_size=40, num_labels=3, **SHAPES["roberta"]), AUTO, seed=1)


def logits(model):
    with torch.no_grad():
        return model(input_ids=IDS, attention_mask=MASK).logits


@pytest.mark.parametrize("kind", FAMILIES)
def test_a_student_with_all_layers_is_its_teacher(kind):
    teacher = tiny(kind)
    built = cut_student(teacher, 4, "alternate", AUTO)
    assert torch.equal(logits(built.model), logits(teacher))
    assert built.origin["copy_map"] == [0, 1, 2, 3]


@pytest.mark.parametrize("kind", FAMILIES)
@pytest.mark.parametrize("policy", ["alternate", "first", "last", [2, 0], [1, 1]])
def test_a_cut_is_the_teacher_run_with_those_blocks_only(kind, policy):
    teacher = tiny(kind)
    built = cut_student(teacher, 2, policy, AUTO)
    student_logits = logits(built.model)
    blocks = family_of(teacher.config).blocks(teacher)
    kept = [blocks[i] for i in built.origin["copy_map"]]
    parent = teacher.base_model.get_submodule(family_of(teacher.config).layers.rsplit(".", 1)[0])
    parent.layer = nn.ModuleList(kept)
    if hasattr(parent, "n_layers"):
        parent.n_layers = 2
    assert torch.equal(student_logits, logits(teacher))
    assert built.model.config.num_hidden_layers == 2


def test_the_teacher_is_untouched_and_shares_no_memory():
    teacher = tiny("bert")
    before = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
    student = cut_student(teacher, 2, "alternate", AUTO).model
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.add_(1)
    assert all(torch.equal(before[name], tensor) for name, tensor in teacher.state_dict().items())


def test_too_deep_and_bad_maps_are_refused():
    with pytest.raises(StudentTooDeep, match="has only 4; choose 1 to 4"):
        cut_student(tiny("bert"), 5, "alternate", AUTO)
    with pytest.raises(LayerMapInvalid):
        cut_student(tiny("bert"), 2, [0, 9], AUTO)


def test_shaped_students_are_narrower_and_come_from_the_seed():
    teacher = tiny("bert")
    shape = Shape(layers=2, hidden_size=16, attention_heads=2)
    one, two, other = (shaped_student(teacher, shape, AUTO, seed).model for seed in (1, 1, 2))
    assert one.config.hidden_size == 16 and one.config.intermediate_size == 64
    assert torch.equal(logits(one), logits(two))
    assert not torch.equal(logits(one), logits(other))


def test_building_does_not_touch_the_global_generator():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    shaped_student(tiny("bert"), Shape(layers=1, hidden_size=16, attention_heads=2), AUTO, 3)
    assert torch.equal(torch.rand(3), expected)
    assert tiny_config("bert").num_hidden_layers == 4
