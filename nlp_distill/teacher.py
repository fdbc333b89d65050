"""Make a teacher worth imitating: used as it is when it has a head for the task, else fine-tuned first.

Fine-tuning is the same loop with a labels-only objective, in full or through low-rank adapters that are merged
before the teacher is used.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from nlp_distill.batches import derived_seed
from nlp_distill.checkpoint import CheckpointFolder
from nlp_distill.errors import HeadMissing, LabelMismatch, LoraOnNew
from nlp_distill.families import family_of
from nlp_distill.loading import has_head, load_config, load_model, save_model, seeded
from nlp_distill.loop import Setting, Trained, train
from nlp_distill.objective import Objective
from nlp_distill.recipe import OPERATION, Finetune, Lora, Teacher, Training
from nlp_distill.rows import Rows
from nlp_distill.rundir import new_folder, sha256_json, write_json
from nlp_distill.sources import Source
from nlp_distill.task import Task
from nlp_distill.terms import LabelsTerm

LARGE = 20_000
"""Rows from which `auto` makes fewer, longer passes."""


@dataclass
class Prepared:
    """A teacher and how it came to be."""

    model: PreTrainedModel
    how: dict[str, Any] = field(default_factory=dict)


def candidates(rows: int) -> list[Finetune]:
    """What `finetune: auto` tries, by the number of training rows."""
    if rows >= LARGE:
        return [Finetune(epochs=3, learning_rate=rate) for rate in (3e-5, 6e-5)]
    return [Finetune(epochs=12, learning_rate=rate, patience=4) for rate in (5e-5, 1e-4, 2e-4)]


def plan(teacher: Teacher, source: Source, task: Task, rows: int) -> list[Finetune]:
    """The fine-tunings to try; none when the teacher is used as it is.

    Reads the config only, so it runs before any training. Raises `HeadMissing`, `LabelMismatch`, `LoraOnNew`,
    `UnknownFamily`.
    """
    family_of(load_config(source.folder), source.name)
    wanted = teacher.finetune
    if isinstance(wanted, Finetune):
        if wanted.lora and source.untrained:
            raise LoraOnNew(reference=source.reference)
        return [wanted]
    headed = has_head(source.folder, task.auto_class) and not source.untrained
    if wanted == "auto" or (wanted is None and not headed):
        return candidates(rows)
    if not headed and not task.needs_head:
        return []
    if not headed:
        raise HeadMissing(reference=source.reference, head=task.pipeline_task)
    check_labels(source, task)
    return []


def check_labels(source: Source, task: Task) -> None:
    """Compare a teacher's label names with the data's, in order; names such as LABEL_0 say nothing.

    Raises `LabelMismatch`.
    """
    if not task.label_names:
        return
    config = load_config(source.folder)
    theirs = [str(config.id2label[i]) for i in range(config.num_labels)]
    ours = task.label_names
    unnamed = all(name == f"LABEL_{i}" for i, name in enumerate(theirs))
    same = [name.casefold() for name in theirs] == [name.casefold() for name in ours]
    if len(theirs) != len(ours) or not (same or unnamed):
        raise LabelMismatch(reference=source.reference, teacher=", ".join(theirs), data=", ".join(ours))


def prepare(
    teacher: Teacher, source: Source, rows: Rows, selection: Rows, setting: Setting, checkpoints: Path, identity: str
) -> Prepared:
    """The teacher, fine-tuned where the plan says so; the best candidate by its selection score.

    `identity`: hash of all that the stage depends on; candidates and checkpoints of others are never used.
    """
    task = setting.task
    plans = plan(teacher, source, task, len(rows.lengths))
    if not plans:
        model = load_model(source.folder, task.auto_class, **task.config_settings())
        _configured(setting, model)
        return Prepared(model, {"finetuned": False, "scored": has_head(source.folder, task.auto_class)})
    tried: list[tuple[Path, dict[str, Any]]] = []
    for number, settings in enumerate(plans):
        stage = "teacher" if len(plans) == 1 else f"teacher {number + 1}/{len(plans)}"
        key = sha256_json([identity, settings.model_dump(mode="json", exclude={*OPERATION})])
        folder = checkpoints / f"candidate-{key[:12]}"
        if not (folder / "trained.json").is_file():
            _finetune(
                source,
                settings,
                rows,
                selection,
                setting,
                CheckpointFolder(checkpoints / key[:12], key, setting.accelerator.is_main_process),
                stage,
                folder,
            )
        tried.append((folder, json.loads((folder / "trained.json").read_text(encoding="utf-8"))))
    folder, best = max(tried, key=lambda candidate: candidate[1]["best_score"])
    chosen = plans[[path for path, _ in tried].index(folder)]
    how = {"finetuned": True, "settings": chosen.model_dump(mode="json"), **best}
    if len(plans) > 1:
        how["tried"] = [
            {"learning_rate": p.learning_rate, "epoch": t["best_epoch"], "selection_score": t["best_score"]}
            for p, (_, t) in zip(plans, tried, strict=True)
        ]
    return Prepared(load_model(folder, task.auto_class), how)


def _finetune(
    source: Source,
    settings: Finetune,
    rows: Rows,
    selection: Rows,
    setting: Setting,
    checkpoints: CheckpointFolder,
    stage: str,
    folder: Path,
) -> None:
    """Train one candidate and publish it as a model folder with `trained.json`."""
    model = load_model(source.folder, setting.task.auto_class, seed=setting.seed, **setting.task.config_settings())
    _configured(setting, model)
    # The adapters are put into the model itself, which stays what the loop and its pipelines know.
    adapted = with_lora(model, settings.lora, setting.seed) if settings.lora else None
    trained = train_on_labels(model, settings, rows, selection, setting, checkpoints, stage)
    if adapted is not None:
        model = adapted.merge_and_unload()
    if setting.accelerator.is_main_process:
        with new_folder(folder) as temporary:
            save_model(model, setting.tokenizer, temporary)
            write_json(temporary / "trained.json", asdict(trained))
    setting.accelerator.wait_for_everyone()


def _configured(setting: Setting, model: PreTrainedModel) -> None:
    said = setting.task.configure(model)
    if said is not None:
        setting.notify("warning", stage="teacher", message=said)


def train_on_labels(
    model: PreTrainedModel,
    settings: Training,
    rows: Rows,
    selection: Rows,
    setting: Setting,
    checkpoints: CheckpointFolder,
    stage: str,
) -> Trained:
    """The loop with a labels-only objective: a teacher's fine-tuning, or the control."""
    objective = Objective([LabelsTerm()], setting.task, model.config)
    return train(model, objective, None, rows, selection, settings, setting, checkpoints, stage)


def with_lora(model: PreTrainedModel, lora: Lora, seed: int) -> Any:
    """The model with low-rank adapters on queries, keys and values; head and pooler are trained in full."""
    # Imported here: it takes an eighth of a process's start, and only a teacher that is adapted needs it.
    from peft import LoraConfig, get_peft_model

    family = family_of(model.config)
    pooler = ["pooler"] if "pooler" in dict(model.base_model.named_children()) else []
    config = LoraConfig(
        task_type=None,
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=sorted({name for stack in family.stacks for name in stack.projections}),
        modules_to_save=[*_heads(model), *pooler],
    )
    with seeded(derived_seed(seed, "lora")):
        return get_peft_model(model, config)


def _heads(model: PreTrainedModel) -> list[str]:
    """Modules beside the body, without what shares a weight with it: a copy of a tied table would come untied."""
    body = {id(parameter) for parameter in model.base_model.parameters()}

    def apart(name: str, module: nn.Module) -> Iterator[str]:
        own = {id(parameter) for parameter in module.parameters()}
        if own and not own & body:
            yield name
        elif own:
            for child, inner in module.named_children():
                yield from apart(f"{name}.{child}", inner)

    beside = [(name, child) for name, child in model.named_children() if child is not model.base_model]
    return [found for name, child in beside for found in apart(name, child)]
