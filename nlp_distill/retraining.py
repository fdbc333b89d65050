"""Repair of an export that loses too much: one epoch more from the teacher, with the export's rounding in the model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from nlp_distill.checkpoint import CheckpointFolder
from nlp_distill.compress.rounding import rounding
from nlp_distill.loading import load_config, load_model, save_model
from nlp_distill.loop import train
from nlp_distill.objective import Objective
from nlp_distill.preflight import supervise_map
from nlp_distill.recipe import Phase
from nlp_distill.road import Road
from nlp_distill.rundir import new_folder, sha256_json
from nlp_distill.teaching import teacher_source

if TYPE_CHECKING:
    from transformers import PreTrainedModel

SHARE = 0.2
"""Of the last phase's learning rate: the student is trained already."""


def retrained(road: Road, bits: int) -> Path:
    """A folder with the student after one epoch of the last phase's terms with weights rounded to `bits`.

    Made once a run. Raises `Interrupted` after a checkpoint, from which the same command resumes.
    """
    folder, name = road.rundir.path / "retrained" / f"int{bits}", f"quantization-aware, {bits} bits"
    last = road.recipe.distill.phases[-1]
    phase = last.model_copy(
        update={
            "epochs": 1,
            "learning_rate": last.learning_rate * SHARE,
            "lean": False,
            "targets": "data",
            "freeze": [],
        }
    )
    distilled = road.rundir.manifest()["stages"]["distill"]["key"]
    key = sha256_json([distilled, bits, phase.model_dump(mode="json")])
    if (folder / key).is_file():
        return folder
    student = load_model(road.rundir.model, road.task.auto_class)
    _train(road, student, phase, bits, name, key)
    with new_folder(folder) as temporary:
        save_model(student, road.tokenizer, temporary)
        (temporary / key).touch()
    return folder


def _train(road: Road, model: PreTrainedModel, phase: Phase, bits: int, name: str, key: str) -> None:
    theirs = load_config(road.rundir.teacher) if road.recipe.teacher is not None else None
    supervise = supervise_map(phase, theirs, model.config)
    objective = Objective(phase.losses, road.task, model.config, theirs, supervise, road.recipe.seed)
    rows = road.train_rows
    if theirs is not None and objective.teacher_request:
        rows = road.with_twin(rows, theirs)
    source = teacher_source(road, phase, objective, rows, model, name, key)
    kept = CheckpointFolder(road.rundir.checkpoints / "export" / f"int{bits}-{key[:12]}", key, road.main)
    with rounding(model, bits):
        train(model, objective, source, rows, road.selection_rows, phase, road.setting(), kept, name)
