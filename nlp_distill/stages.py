"""The road: data → teacher → student → distill → control → export → evaluate → measure → results → report → publish.

Each stage publishes its output and says so in the manifest; a stage that is complete is skipped.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from nlp_distill.checkpoint import CheckpointFolder
from nlp_distill.errors import BudgetMissed, Interrupted
from nlp_distill.estimate import check_disk
from nlp_distill.loading import load_config, load_model, save_model
from nlp_distill.loop import Notify, Trained, train
from nlp_distill.objective import Objective
from nlp_distill.precision import PROBED, deterministic, probe
from nlp_distill.preflight import check, supervise_map
from nlp_distill.publishing import check_publish, publish_stage
from nlp_distill.recipe import OPERATION, Phase, Recipe
from nlp_distill.recipe_file import recipe_and_folder, write_recipe
from nlp_distill.reports.pages import report_stage
from nlp_distill.road import Road
from nlp_distill.rundir import RunDir, new_folder, read_json, sha256_json, write_json, write_text
from nlp_distill.signals import model_inputs
from nlp_distill.sources import resolve
from nlp_distill.stage_keys import UPSTREAM, StageKeys, standing
from nlp_distill.student import Built, cut_student, frozen, shaped_student
from nlp_distill.targets import taught_rows
from nlp_distill.teacher import prepare
from nlp_distill.teaching import teacher_source
from nlp_distill.terms import LabelsTerm
from nlp_distill.trouble import named, together
from nlp_distill.variants import evaluate_stage, export_stage, measure_stage, results_stage
from nlp_distill.vocabulary import trim_model

if TYPE_CHECKING:
    from transformers import PreTrainedModel

STAGES = tuple(UPSTREAM)


class Run:
    """A finished (or partly finished) run: its folder, results and model."""

    def __init__(self, path: str | Path) -> None:
        self.dir = RunDir(path)
        self.path = self.dir.path

    @property
    def results(self) -> dict[str, Any]:
        """`results.json`, empty before the last stage."""
        if not self.dir.results.is_file():
            return {}
        return read_json(self.dir.results)

    def pipeline(self, variant: str | None = None) -> Any:
        """An Optimum pipeline of the recommended variant, or of the one named."""
        from nlp_distill.prediction import load_pipeline

        return load_pipeline(self.path, variant)


def run(
    recipe: str | Path | Recipe,
    *overrides: str,
    out: str | Path | None = None,
    redo: bool = False,
    until: str = STAGES[-1],
    strict: bool = False,
    notify: Notify | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> Run:
    """Run a recipe, or go on with a run, up to and including a stage.

    `recipe`: a file, the name of a shipped recipe, the folder of a run, or a `Recipe`; `overrides`:
    `"distill.epochs=3"`; `out`: the run's folder (default `runs/NAME`, or the run itself); `redo`: make stages
    whose settings changed anew; `strict`: raise `BudgetMissed` when the budget is missed.
    Raises `UserError` for what the user can correct, `Interrupted` when `stop()` turned true.
    """
    recipe, folder = recipe_and_folder(recipe, overrides, out)
    rundir = RunDir(folder)
    events = notify or (lambda kind, **fields: None)

    def tell(kind: str, **fields: Any) -> None:
        rundir.event(kind, **fields)
        events(kind, **fields)

    road = Road(recipe, rundir, tell, stop)
    try:
        with deterministic(road.strict):
            asked = STAGES[: STAGES.index(until) + 1]
            with together("start"):
                keys, proof = enter(road, redo), STAGES.index("publish")
            _walk(road, keys, asked[:proof])
            finished = Run(folder)
            missed = [name for name, limit in finished.results.get("budget", {}).items() if not limit["met"]]
            if strict and "results" in asked and missed:
                raise BudgetMissed(missed=", ".join(missed))
            _walk(road, keys, asked[proof:])
    finally:
        rundir.release()
    road.accelerator.end_training()
    return finished


def _wanted(stage: str, recipe: Recipe) -> bool:
    return {"control": recipe.control, "publish": recipe.publish is not None}.get(stage, True)


def _walk(road: Road, keys: StageKeys, stages: tuple[str, ...]) -> None:
    """Stages in order, those that are complete skipped."""
    for stage in stages:
        if road.agreed(keys.complete(stage)):
            if road.main:
                keys.drop_checkpoints(stage)
            road.notify("stage", stage=stage, state="skipped")
            continue
        if road.agreed(road.stop()):
            raise Interrupted(step=0, stage=stage)
        if _wanted(stage, road.recipe):
            road.notify("stage", stage=stage, state="started")
        start = time.monotonic()
        if road.main:
            keys.start(stage)
        with keys.counted(stage), named(stage, road.stop):
            files, facts = MAKERS[stage](road)
            # What goes now, checkpoints and candidates, another process may still be reading.
            road.accelerator.wait_for_everyone()
        if road.main:
            keys.record(stage, files, time.monotonic() - start, **facts)
            keys.drop_checkpoints(stage)
        road.accelerator.wait_for_everyone()
        road.notify("stage", stage=stage, state="done", seconds=round(time.monotonic() - start, 1), **facts)


def enter(road: Road, redo: bool) -> StageKeys:
    """Refuse before training what cannot work; then make or enter the run folder."""
    recipe, rundir = road.recipe, road.rundir
    found = check(recipe, road.task, road.source, len(road.slices.train))
    stand = standing(rundir, recipe) if rundir.exists() and not redo else set()
    check_publish(road, stand)
    if redo or not rundir.exists():
        road.try_out()
    if road.main:
        check_disk(rundir.path, recipe, road.task, found, stand)
        rundir.create()
    road.accelerator.wait_for_everyone()
    keys = StageKeys(rundir, stage_settings(road), redo, road.main)
    road.accelerator.wait_for_everyone()
    if road.main:
        write_text(rundir.recipe, write_recipe(recipe))
        road.sign()
    road.accelerator.wait_for_everyone()
    # Sums depend on the number of threads: a resumed run repeats the first one's bits only with as many.
    torch.set_num_threads(rundir.manifest()["machine"]["threads"])
    if recipe.trackers:
        road.accelerator.init_trackers("nlp_distill", config={"recipe_sha256": recipe.sha256()})
    return keys


def stage_settings(road: Road) -> dict[str, dict[str, Any]]:
    """What each stage depends on besides the stages before it."""
    recipe = _without(road.recipe.resolved(), OPERATION)
    phases = recipe["distill"]["phases"]
    trainings = [{k: v for k, v in phase.items() if k not in ("losses", "supervise", "cache")} for phase in phases]
    chosen = road.recipe.student.model
    other = resolve(chosen).identity() if chosen is not None else None
    common = {
        "seed": recipe["seed"],
        "precision": recipe["precision"],
        "compile": recipe["compile"],
        "determinism": "strict" if road.strict else "fast",
        "processes": road.accelerator.num_processes,
    }
    return {
        "data": {
            "task": recipe["tasks"],
            "options": road.task.options.model_dump(mode="json"),
            "data": recipe["data"],
            "sha256": road.slices.sha256,
            "labels": road.task.label_names,
            "max_length": recipe["max_length"],
        },
        "teacher": {"teacher": recipe["teachers"], "sha256": road.source.identity(), **common},
        "student": {"student": recipe["student"], "sha256": other, "seed": recipe["seed"]},
        "distill": {"distill": recipe["distill"], **common},
        "control": {
            "control": recipe["control"],
            "training": trainings if recipe["control"] else [],
            **common,
        },
        "export": {"export": recipe["export"]},
        "evaluate": {},
        "measure": {"threads": recipe["budget"]["threads"], "sequence": recipe["budget"]["sequence"]},
        "results": {"budget": recipe["budget"]},
        "report": {},
        "publish": {"publish": recipe["publish"]},
    }


def _without(value: Any, names: tuple[str, ...]) -> Any:
    if isinstance(value, dict):
        return {name: _without(child, names) for name, child in value.items() if name not in names}
    return [_without(child, names) for child in value] if isinstance(value, list) else value


Made = tuple[list[str], dict[str, Any]]
"""Files of a stage's output, relative to the run folder, and facts to keep about it."""


def _data_stage(road: Road) -> Made:
    rows, facts = road.slices, road.notes
    road.notify("data", split=rows.split, rows=rows.rows, notes=facts)
    return [], {"rows": rows.rows, "split": rows.split, "notes": facts}


def _teacher_stage(road: Road) -> Made:
    _settle_precision(road)
    if road.recipe.teacher is None:
        return [], {"how": {"name": None, "scored": False}}
    prepared = prepare(
        road.recipe.teacher,
        road.source,
        road.for_teacher(road.train_rows),
        road.for_teacher(road.selection_rows),
        road.setting(road.teacher_tokenizer),
        road.rundir.checkpoints / "teacher",
        identity=sha256_json([stage_settings(road)[stage] for stage in ("data", "teacher")]),
    )
    source = road.source
    lineage = {"licence": source.licence, "base_model": source.base}
    how = {"name": source.name, "revision": source.revision, **lineage, **prepared.how}
    documents = {"teacher.json": {**how, "task": _task(road)}}
    files = _publish(road, road.rundir.teacher, prepared.model, documents, road.teacher_tokenizer)
    return files, {"how": how}


def _settle_precision(road: Road) -> None:
    """Probe once a run; a resumed run reuses the answer, so that it repeats the same bits."""
    asked = road.recipe.precision
    if road.main and road.rundir.manifest().get("precision", {}).get("asked") != asked:
        settled: dict[str, Any] = {"precision": asked}
        if road.recipe.precision == "auto":
            task, rows = road.task, road.for_teacher(road.train_rows)
            model = load_model(road.source.folder, task.auto_class, **task.config_settings())
            model.to(road.accelerator.device)
            typical = rows.lengths.argsort()[len(rows.lengths) // 2 :][:32]
            if model.device.type == "cpu":
                typical = typical[: max(1, PROBED // int(rows.lengths[typical[0]]))]
            batch = task.collate(road.teacher_tokenizer, model.config)(rows.take(typical, seed=0))
            settled = probe(model, {name: v.to(road.accelerator.device) for name, v in model_inputs(batch).items()})
        road.rundir.update_manifest(precision={"asked": asked, **settled})
        road.notify("precision", **settled)
    road.accelerator.wait_for_everyone()


def _student_stage(road: Road) -> Made:
    recipe, task, student = road.recipe, road.task, road.recipe.student
    if not road.main:
        return [], {}
    if student.cut:
        teacher = load_model(road.rundir.teacher, task.auto_class)
        built = cut_student(teacher, student, task.auto_class, road.source.reference)
    elif student.config is not None:
        teacher = load_model(road.rundir.teacher, task.auto_class)
        built = shaped_student(teacher, student.config, task.auto_class, recipe.seed)
        _configured(road, built.model)
    else:
        other = resolve(str(student.model))
        model = load_model(other.folder, task.auto_class, seed=recipe.seed, **task.config_settings())
        _configured(road, model)
        lineage = {"licence": other.licence, "base_model": other.base}
        built = Built(model, {"kind": "checkpoint", "name": other.name, "sha256": other.sha256, **lineage})
    if road.trim is not None:
        trim_model(built.model, road.trim)
        built.origin["vocabulary"] = road.tell_vocabulary(road.trim)
    return _publish(
        road, road.rundir.student, built.model, {"student.json": {**built.description(), "task": _task(road)}}
    ), {"origin": built.origin}


def _configured(road: Road, model: PreTrainedModel) -> None:
    said = road.task.configure(model)
    if said is not None:
        road.notify("warning", stage="student", message=said)


def _task(road: Road) -> dict[str, Any]:
    """What a pipeline of the model must know of its task."""
    return {"name": road.task.name, "options": road.task.options.model_dump(mode="json")}


def _distill_stage(road: Road) -> Made:
    return _train_student(road, "distill", road.recipe.distill.phases, road.rundir.model)


def _control_stage(road: Road) -> Made:
    if not road.recipe.control:
        return [], {"trained": None}
    alone = {"losses": [LabelsTerm()], "targets": "data"}
    phases = [phase.model_copy(update=alone) for phase in road.recipe.distill.phases]
    return _train_student(road, "control", phases, road.rundir.control)


def _train_student(road: Road, stage: str, phases: list[Phase], folder: Path) -> Made:
    """Train the student through its phases, each starting from what the one before it kept."""
    setting = road.setting()
    student = load_model(road.rundir.student, road.task.auto_class)
    theirs = load_config(road.rundir.teacher) if road.recipe.teacher is not None else None
    history: list[Trained] = []
    checkpoints = road.rundir.checkpoints / stage
    for number, phase in enumerate(phases):
        name = stage if len(phases) == 1 else f"{stage} {number + 1}/{len(phases)}"
        supervise = supervise_map(phase, theirs, student.config)
        objective = Objective(phase.losses, road.task, student.config, theirs, supervise, road.recipe.seed)
        key = sha256_json([stage_settings(road)[stage], road.slices.sha256, _weights_key(road), number])
        kept = CheckpointFolder(checkpoints / f"phase-{number}-{key[:12]}", key, road.main)
        rows = road.train_rows if phase.targets == "data" else taught_rows(road, shared=phase.cache != "none")
        if theirs is not None and objective.teacher_request:
            rows = road.with_twin(rows, theirs)
        with frozen(student, phase.freeze):
            source = teacher_source(road, phase, objective, rows, student, name, key)
            trained = train(student, objective, source, rows, road.selection_rows, phase, setting, kept, name)
        history.append(trained)
    origin = json.loads((road.rundir.student / "student.json").read_text(encoding="utf-8"))
    files = _publish(road, folder, student, {"student.json": origin})
    return files, {"trained": [asdict(trained) for trained in history]}


def _weights_key(road: Road) -> dict[str, str]:
    """Identity of the weights that a distillation starts from: checkpoints of others are never resumed."""
    stages = road.rundir.manifest()["stages"]
    return {name: stages[name]["key"] for name in ("teacher", "student")}


def _publish(
    road: Road, folder: Path, model: PreTrainedModel, documents: dict[str, Any], tokenizer: Any = None
) -> list[str]:
    """Publish a model folder, with the student's tokenizer unless another is given; file names relative to the run."""
    if not road.main:
        return []
    with new_folder(folder) as temporary:
        save_model(model, tokenizer or road.tokenizer, temporary)
        for name, document in documents.items():
            write_json(temporary / name, document)
    return [str(file.relative_to(road.rundir.path)) for file in _files(folder)]


def _files(folder: Path) -> Iterator[Path]:
    return (file for file in sorted(folder.rglob("*")) if file.is_file())


MAKERS: dict[str, Callable[[Road], Made]] = {
    "data": _data_stage,
    "teacher": _teacher_stage,
    "student": _student_stage,
    "distill": _distill_stage,
    "control": _control_stage,
    "export": export_stage,
    "evaluate": evaluate_stage,
    "measure": measure_stage,
    "results": results_stage,
    "report": report_stage,
    "publish": publish_stage,
}
