"""Build a student: cut from a teacher, from another checkpoint, or in a new shape."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel

from nlp_distill.errors import LayerMapInvalid, StudentShapeInvalid, StudentTooDeep
from nlp_distill.families import encoder_of, family_of
from nlp_distill.layers import stack_maps
from nlp_distill.loading import new_model
from nlp_distill.recipe import Shape, Student


@dataclass
class Built:
    """A student and how it came to be, as `student.json` says it."""

    model: PreTrainedModel
    origin: dict[str, Any]

    def description(self) -> dict[str, Any]:
        """What `student.json` says: where the student comes from, and the structure changes to apply when loading."""
        return {"schema": 1, "origin": self.origin, "transforms": []}


def cut_depths(teacher: PretrainedConfig, chosen: Student, reference: str = "") -> dict[str, tuple[int, int]]:
    """(teacher's layers, student's layers) of each stack. Raises `StudentTooDeep`, `UnknownFamily`."""
    depths = {}
    for stack in family_of(teacher, reference).stacks:
        depth = stack.count(teacher)
        layers = chosen.layers_of(stack.name, depth)
        if layers > depth:
            raise StudentTooDeep(layers=layers, teacher_layers=depth, reference=reference)
        depths[stack.name] = (depth, layers)
    if chosen.decoder_layers is not None and "decoder" not in depths:
        raise LayerMapInvalid(policy="decoder_layers", reason="the teacher has no decoder", fix="use `layers`")
    return depths


def cut_config(teacher: PretrainedConfig, depths: dict[str, tuple[int, int]]) -> PretrainedConfig:
    """The teacher's config with fewer layers."""
    config = copy.deepcopy(teacher)
    for stack in family_of(config).stacks:
        stack.set_count(config, depths[stack.name][1])
    return config


def cut_student(teacher: PreTrainedModel, chosen: Student, auto_class: str, reference: str = "") -> Built:
    """A student with some of the teacher's blocks; embeddings, pooler and head are copied.

    Raises `StudentTooDeep`, `LayerMapInvalid`, `UnknownFamily`.
    """
    family = family_of(teacher.config, reference)
    depths = cut_depths(teacher.config, chosen, reference)
    copied = stack_maps(chosen.init, depths)
    student = new_model(cut_config(teacher.config, depths), auto_class, seed=0)
    state = teacher.state_dict()
    for stack in family.stacks:
        if not stack.shared:
            state = _cut_state(state, stack.prefix(teacher), copied[stack.name])
    student.load_state_dict(state, strict=True)
    student.generation_config = copy.deepcopy(teacher.generation_config)
    theirs = {name: depth for name, (depth, _) in depths.items()}
    return Built(student, {"kind": "cut", "copy_map": copied, "teacher_layers": theirs})


def _cut_state(state: dict[str, Tensor], prefix: str, copied: list[int]) -> dict[str, Tensor]:
    """The state with only the copied blocks of a stack, renumbered.

    What only the first block has (T5's position bias) stays in the first block.
    """
    rest: dict[str, Tensor] = {}
    blocks: dict[int, dict[str, Tensor]] = {}
    for name, tensor in state.items():
        if name.startswith(prefix):
            number, part = name[len(prefix) :].split(".", 1)
            blocks.setdefault(int(number), {})[part] = tensor
        else:
            rest[name] = tensor
    of_all = set.intersection(*(set(parts) for parts in blocks.values()))
    for ours, theirs in enumerate(copied):
        own = {part: tensor for part, tensor in blocks[theirs].items() if part in of_all}
        if ours == 0:
            own |= {part: tensor for part, tensor in blocks[0].items() if part not in of_all}
        rest |= {f"{prefix}{ours}.{part}": tensor for part, tensor in own.items()}
    return rest


@contextmanager
def frozen(model: PreTrainedModel, parts: Sequence[str]) -> Iterator[None]:
    """Within the block the named parts do not train: `embeddings`, or the `encoder` of a seq2seq model."""
    modules = {"embeddings": [model.get_input_embeddings]}
    if model.config.is_encoder_decoder:
        modules["encoder"] = [lambda: encoder_of(model)]
        modules["embeddings"].append(model.base_model.get_decoder().get_input_embeddings)
    kept = [parameter for part in parts for module in modules[part] for parameter in module().parameters()]
    for parameter in kept:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in kept:
            parameter.requires_grad_(True)


def shaped_config(teacher: PretrainedConfig, shape: Shape) -> PretrainedConfig:
    """The teacher's config in another shape. Raises `StudentShapeInvalid`."""
    config = copy.deepcopy(teacher)
    for stack in family_of(teacher).stacks:
        stack.set_count(config, shape.layers)
        part = stack.config(config)
        if shape.hidden_size is not None:
            part.hidden_size = shape.hidden_size
            setattr(part, stack.intermediate_size, 4 * shape.hidden_size)
            if hasattr(part, "pooler_hidden_size"):
                part.pooler_hidden_size = shape.hidden_size
        if shape.attention_heads is not None:
            setattr(part, stack.heads, shape.attention_heads)
        if shape.intermediate_size is not None:
            setattr(part, stack.intermediate_size, shape.intermediate_size)
        if shape.hidden_size is None and shape.attention_heads is None:
            continue
        width, heads = stack.width(config), stack.head_count(config)
        if width % heads:
            raise StudentShapeInvalid(width=width, heads=heads)
        if stack.head_width is not None:
            setattr(part, stack.head_width, width // heads)
    return config


def shaped_student(teacher: PreTrainedModel, shape: Shape, auto_class: str, seed: int) -> Built:
    """A student of the teacher's architecture in another shape, with random weights."""
    model = new_model(shaped_config(teacher.config, shape), auto_class, seed=seed)
    return Built(model, {"kind": "shape", **shape.model_dump(exclude_none=True)})
