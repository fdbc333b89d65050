"""Refuse before training what cannot work: teacher, student, terms and exports checked from configs alone."""

from __future__ import annotations

from dataclasses import dataclass

from transformers import PretrainedConfig, PreTrainedTokenizerBase

from nlp_distill.cache import obstacle
from nlp_distill.errors import (
    CacheRefused,
    ConfigInvalid,
    ExportInvalid,
    ModelUnfit,
    NotYet,
    SignalMissing,
    TokenizerMismatch,
    TokenizerSlow,
    TokenizerUnfit,
)
from nlp_distill.exports.formats import FORMATS
from nlp_distill.families import family_of
from nlp_distill.layers import stack_maps
from nlp_distill.loading import has_class, has_head, load_config, load_generation, load_tokenizer, shape_of
from nlp_distill.objective import Objective
from nlp_distill.recipe import Phase, Recipe, Student
from nlp_distill.sources import Source, resolve
from nlp_distill.student import cut_config, cut_depths, shaped_config
from nlp_distill.task import Task
from nlp_distill.teacher import plan
from nlp_distill.terms import LayerTerm
from nlp_distill.vocabulary import check_trimmable, reads_alike


@dataclass
class Feasible:
    """What a recipe will do, as far as configs tell. Maps are by stack."""

    tries: int
    teacher: PretrainedConfig | None
    student: PretrainedConfig
    copy_map: dict[str, list[int]] | None
    supervise: list[dict[str, list[int]]]


def supervise_map(phase: Phase, teacher: PretrainedConfig | None, student: PretrainedConfig) -> dict[str, list[int]]:
    """Teacher layer of each student layer, by stack; empty when no term of the phase reads layers."""
    terms = [term for term in phase.losses if isinstance(term, LayerTerm)]
    if not terms or teacher is None:
        return {}
    theirs = {stack.name: stack.count(teacher) for stack in family_of(teacher).stacks}
    ours = {stack.name: stack.count(student) for stack in family_of(student).stacks}
    return stack_maps(phase.supervise, {name: (theirs[name], ours[name]) for name in ours if name in theirs})


def check(recipe: Recipe, task: Task, source: Source, rows: int) -> Feasible:
    """Raises the `UserError` that a run would end in after its training, before it. `rows`: to learn from."""
    copied, chosen, tries = None, recipe.student, 0
    first = check_model(source, task)
    teacher = first if recipe.teacher else None
    if recipe.teacher is not None:
        tries = len(plan(recipe.teacher, source, task, rows))
        _check_head(recipe, task, source, tries)
    _check_vocabulary(chosen, task, source, first)
    if teacher is None:
        student = first
    elif chosen.cut:
        depths = cut_depths(teacher, chosen, source.reference)
        copied = stack_maps(chosen.init, depths)
        student = cut_config(teacher, depths)
    elif chosen.config is not None:
        student = shaped_config(teacher, chosen.config)
    else:
        student = _other(str(chosen.model), source, task, recipe)
    supervise = [supervise_map(phase, teacher, student) for phase in recipe.distill.phases]
    for phase, layers in zip(recipe.distill.phases, supervise, strict=True):
        if "encoder" in phase.freeze and not student.is_encoder_decoder:
            raise NotYet(what="`freeze: [encoder]` of a model without a decoder", instead="freeze the embeddings only")
        if phase.targets == "teacher" and type(task).with_answers is Task.with_answers:
            raise NotYet(what=f"`targets: teacher` for {task.name}", instead="use a `logits` term")
        objective = Objective(phase.losses, task, student, teacher, layers)
        if "encoder" in phase.freeze and all(bound.ours.name == "encoder" for bound in objective.terms.values()):
            raise SignalMissing(
                term=", ".join(sorted({bound.term.kind for bound in objective.terms.values()})),
                reason="the encoder, the only part that is compared, is frozen",
                fix="leave `encoder` out of `freeze`, or add a term of the decoder or the labels",
            )
        if teacher is not None and objective.teacher_request and phase.cache not in ("auto", "none"):
            reason = obstacle(task, teacher, phase.losses, phase.cache)
            if reason:
                raise CacheRefused(reason=reason)
    check_exports(recipe, task, student)
    return Feasible(tries, teacher, student, copied, supervise)


def check_exports(recipe: Recipe, task: Task, student: PretrainedConfig) -> None:
    """Refuse exports that nobody can make of the student. Raises `ExportInvalid`, `NotExportable`, `MissingExtra`."""
    seen: set[tuple[str, str]] = set()
    for entry in recipe.export:
        if (entry.format, entry.profile) in seen:
            raise ExportInvalid(reason=f"'{entry.profile}' of {entry.format} is asked for twice; keep one")
        seen.add((entry.format, entry.profile))
        FORMATS[entry.format].check(student, task, entry)


def check_model(source: Source, task: Task) -> PretrainedConfig:
    """The config of a model that can do the task with its tokenizer. Raises `ModelError`."""
    config = load_config(source.folder, **task.config_settings())
    family_of(config, source.reference)
    reason = task.unfit(config)
    if not has_class(source.folder, task.auto_class):
        reason = f"transformers has no {task.auto_class} of this type; choose another model"
    if reason is not None:
        raise ModelUnfit(reference=source.reference, model_type=config.model_type, task=task.name, reason=reason)
    try:
        shape_of(config, task.auto_class)
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        # Whatever transformers stumbles over in somebody's numbers.
        raise ConfigInvalid(reference=source.reference, reason=f"{type(error).__name__}: {error}") from error
    tokenizer = check_tokenizer(source, task, config)
    task.collate(tokenizer, config)
    load_generation(source.folder)
    return config


def check_tokenizer(source: Source, task: Task, config: PretrainedConfig) -> PreTrainedTokenizerBase:
    """A model's tokenizer, if it can serve the task. Raises `TokenizerSlow`, `TokenizerUnfit`, `ModelNotFound`."""
    tokenizer = load_tokenizer(source.folder)
    tokens = int(getattr(config, "encoder", config).vocab_size)
    if task.offsets and not tokenizer.is_fast:
        raise TokenizerSlow(reference=source.reference, need=task.name)
    if reason := "it has no padding token" if tokenizer.pad_token_id is None else task.unfit_tokenizer(tokenizer):
        raise TokenizerUnfit(reason=reason)
    # BART's summarisers have a mask in their tokenizer that only masked_lm would ever say.
    idle = () if task.noisy else (tokenizer.mask_token,)
    if max(number for token, number in tokenizer.get_vocab().items() if token not in idle) >= tokens:
        raise TokenizerUnfit(reason=f"it has {len(tokenizer)} tokens, the model only {tokens}")
    return tokenizer


def _check_vocabulary(chosen: Student, task: Task, source: Source, config: PretrainedConfig) -> None:
    """Refuse to trim what must be able to say every word. Raises `NotYet`, `VocabularyUntrimmable`."""
    if chosen.vocabulary == "keep":
        return
    if config.is_encoder_decoder or task.noisy:
        raise NotYet(what=f"`vocabulary: trim` for {task.name}", instead="leave it out: this student says words")
    check_trimmable(load_tokenizer(source.folder))


def _check_head(recipe: Recipe, task: Task, source: Source, tries: int) -> None:
    """Refuse to learn logits of a head that nobody trained."""
    kinds = {term.kind for phase in recipe.distill.phases for term in phase.losses}
    if not tries and "logits" in kinds and not has_head(source.folder, task.auto_class):
        raise SignalMissing(
            term="logits",
            reason=f"the teacher '{source.reference}' has no {task.pipeline_task} head and is not trained",
            fix="leave the term out, or set `teacher.finetune`",
        )


def _other(reference: str, teacher: Source, task: Task, recipe: Recipe) -> PretrainedConfig:
    """Config of a student that is another checkpoint.

    With another tokenizer than the teacher's only terms make sense that compare no tokens: labels, and logits of
    whole rows.
    """
    source = resolve(reference)
    config = check_model(source, task)
    theirs, ours = load_tokenizer(teacher.folder), load_tokenizer(source.folder)
    allowed = {"labels", "logits"} if task.any_tokenizer else {"labels"}
    refused = sorted({term.kind for phase in recipe.distill.phases for term in phase.losses} - allowed)
    if refused and not reads_alike(ours, theirs):
        raise TokenizerMismatch(
            teacher=len(theirs), student=len(ours), terms=", ".join(refused), allowed=" and ".join(sorted(allowed))
        )
    return config
