"""Build a student: cut from a teacher, from another checkpoint, or in a new shape."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel

from nlp_distill.errors import StudentShapeInvalid, StudentTooDeep
from nlp_distill.families import family_of
from nlp_distill.layers import layer_map
from nlp_distill.loading import new_model
from nlp_distill.recipe import LayerMap, Shape


@dataclass
class Built:
    """A student and how it came to be, as `student.json` says it."""

    model: PreTrainedModel
    origin: dict[str, Any]

    def description(self) -> dict[str, Any]:
        """What `student.json` says: where the student comes from, and the structure changes to apply when loading."""
        return {"schema": 1, "origin": self.origin, "transforms": []}


def cut_student(teacher: PreTrainedModel, layers: int, policy: LayerMap, auto_class: str, reference: str = "") -> Built:
    """A student with `layers` of the teacher's blocks; embeddings, pooler and head are copied.

    Raises `StudentTooDeep`, `LayerMapInvalid`, `UnknownFamily`.
    """
    family = family_of(teacher.config, reference)
    depth = teacher.config.num_hidden_layers
    if layers > depth:
        raise StudentTooDeep(layers=layers, teacher_layers=depth, reference=reference)
    copied = layer_map(policy, depth, layers)
    config = copy.deepcopy(teacher.config)
    config.num_hidden_layers = layers
    student = new_model(config, auto_class, seed=0)
    state = _cut_state(teacher.state_dict(), family.layer_prefix(teacher), copied)
    student.load_state_dict(state, strict=True)
    return Built(student, {"kind": "cut", "copy_map": copied, "teacher_layers": depth})


def _cut_state(state: dict[str, Tensor], prefix: str, copied: list[int]) -> dict[str, Tensor]:
    """The teacher's state with only the copied blocks, renumbered."""
    chosen: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if not name.startswith(prefix):
            chosen[name] = tensor
            continue
        number, rest = name[len(prefix) :].split(".", 1)
        for ours, theirs in enumerate(copied):
            if int(number) == theirs:
                chosen[f"{prefix}{ours}.{rest}"] = tensor
    return chosen


def shaped_config(teacher: PretrainedConfig, shape: Shape) -> PretrainedConfig:
    """The teacher's config in another shape. Raises `StudentShapeInvalid`."""
    family = family_of(teacher)
    config = copy.deepcopy(teacher)
    config.num_hidden_layers = shape.layers
    if shape.hidden_size is not None:
        config.hidden_size = shape.hidden_size
        setattr(config, family.intermediate_size, 4 * shape.hidden_size)
    if shape.attention_heads is not None:
        config.num_attention_heads = shape.attention_heads
    if shape.intermediate_size is not None:
        setattr(config, family.intermediate_size, shape.intermediate_size)
    if config.hidden_size % config.num_attention_heads:
        raise StudentShapeInvalid(width=config.hidden_size, heads=config.num_attention_heads)
    return config


def shaped_student(teacher: PreTrainedModel, shape: Shape, auto_class: str, seed: int) -> Built:
    """A student of the teacher's architecture in another shape, with random weights."""
    model = new_model(shaped_config(teacher.config, shape), auto_class, seed=seed)
    return Built(model, {"kind": "shape", **shape.model_dump(exclude_none=True)})
