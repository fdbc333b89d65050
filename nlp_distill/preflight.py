"""Refuse before training what cannot work: teacher, student, terms and exports checked from configs alone."""

from __future__ import annotations

from dataclasses import dataclass

from transformers import PretrainedConfig

from nlp_distill.errors import NotYet, StudentTooDeep, TokenizerMismatch
from nlp_distill.exports.onnx import check_exportable
from nlp_distill.families import family_of
from nlp_distill.layers import layer_map
from nlp_distill.loading import load_config, load_tokenizer
from nlp_distill.objective import Objective
from nlp_distill.recipe import Phase, Recipe
from nlp_distill.sources import Source, resolve
from nlp_distill.student import shaped_config
from nlp_distill.task import Task
from nlp_distill.teacher import plan

LAYERED = ("hidden", "attention", "relation")


@dataclass
class Feasible:
    """What a recipe will do, as far as configs tell."""

    tries: int
    teacher: PretrainedConfig
    student: PretrainedConfig
    copy_map: list[int] | None
    supervise: list[list[int]]


def supervise_map(phase: Phase, teacher: PretrainedConfig, student: PretrainedConfig) -> list[int]:
    """Teacher layer of each student layer; empty when no term of the phase reads layers."""
    if not any(term.kind in LAYERED for term in phase.losses):
        return []
    return layer_map(phase.supervise, teacher.num_hidden_layers, student.num_hidden_layers)


def check(recipe: Recipe, task: Task, source: Source, rows: int) -> Feasible:
    """Raises the `UserError` that a run would end in after its training, before it. `rows`: to learn from."""
    tries = len(plan(recipe.teacher, source, task, rows))
    teacher = load_config(source.folder, **task.config_settings())
    family_of(teacher, source.reference)
    copied = None
    chosen = recipe.student
    if chosen.layers is not None:
        depth = teacher.num_hidden_layers
        if chosen.layers > depth:
            raise StudentTooDeep(layers=chosen.layers, teacher_layers=depth, reference=source.reference)
        copied = layer_map(chosen.init, depth, chosen.layers)
        student = load_config(source.folder, **task.config_settings())
        student.num_hidden_layers = chosen.layers
    elif chosen.config is not None:
        student = shaped_config(teacher, chosen.config)
    else:
        student = _other(str(chosen.model), source, task)
    supervise = [supervise_map(phase, teacher, student) for phase in recipe.distill.phases]
    for phase, layers in zip(recipe.distill.phases, supervise, strict=True):
        Objective(phase.losses, task, student, teacher, layers)
    if len({export.format for export in recipe.export}) < len(recipe.export):
        raise NotYet(what="More than one export in a format", instead="give one entry for each format")
    for export in recipe.export:
        check_exportable(source, task.pipeline_task, export)
    return Feasible(tries, teacher, student, copied, supervise)


def _other(reference: str, teacher: Source, task: Task) -> PretrainedConfig:
    """Config of a student that is another checkpoint; it must share the teacher's vocabulary."""
    source = resolve(reference)
    config = load_config(source.folder, **task.config_settings())
    family_of(config, reference)
    theirs, ours = load_tokenizer(teacher.folder), load_tokenizer(source.folder)
    if theirs.get_vocab() != ours.get_vocab():
        raise TokenizerMismatch(teacher=len(theirs), student=len(ours))
    return config
