"""Predict with a model that was made here: always a transformers or Optimum pipeline, right for the task."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nlp_distill.errors import ModelFolderNotFound, ModelHasNoTask, RunFolderDamaged, VariantUnknown
from nlp_distill.exports.formats import FORMATS, form_of, forms_there
from nlp_distill.loading import architectures, has_head, load_model, load_tokenizer
from nlp_distill.rundir import RunDir, read_json
from nlp_distill.scores import model_pipeline
from nlp_distill.sources import resolve
from nlp_distill.task import Task, load_task, task_names


def load_pipeline(path: str | Path, variant: str | None = None, threads: int | None = None) -> Any:
    """A pipeline for a run, a model folder or a Hub id.

    `variant`: `student`, `student-onnx-int8` and so on (docs/exports.md), and in a run `teacher` and `control`; unset:
    the one that the run recommends, else the smallest that is there and has its runtime. Inputs are cut at the
    tokenizer's `model_max_length`, and batches have one row unless the call says otherwise: the answers of dynamic
    int8 depend on what else is in the batch. Raises `ModelFolderNotFound`, `VariantUnknown`, `ModelError`.
    """
    return load_variant(path, variant, threads)[1]


def load_variant(path: str | Path, variant: str | None = None, threads: int | None = None) -> tuple[Task, Any]:
    """As `load_pipeline`, with the task that the model was made for."""
    run = RunDir(path)
    others: dict[str, Path] = {}
    if run.exists():
        others = {"teacher": run.teacher, "control": run.control}
        # Before the last stage no export is proven yet.
        variant = variant or _recommended(run) or "student"
        folder = run.model
    elif Path(path).is_dir() or "/" not in str(path):
        folder = Path(path)
    else:
        folder = resolve(str(path), exports=True).folder
    others = {name: other for name, other in others.items() if (other / "config.json").is_file()}
    if not (folder / "config.json").is_file() and variant not in others:
        raise ModelFolderNotFound(folder=path)
    there = forms_there(folder)
    names = [*(form.variant for form in there), "student", *others]
    variant = variant or _smallest(folder) or "student"
    if variant not in names:
        raise VariantUnknown(variant=variant, folder=path, known=", ".join(names))
    folder = others.get(variant, folder)
    task = task_of(folder)
    return task, variant_pipeline(folder, task, variant, threads)


def _smallest(folder: Path) -> str | None:
    """The smallest exported variant whose runtime is installed."""
    usable = [form for form in forms_there(folder) if FORMATS[form.format].installed]
    sizes = {
        form.variant: sum(file.stat().st_size for file in FORMATS[form.format].files(folder, form)) for form in usable
    }
    return min(sizes, key=lambda name: sizes[name]) if sizes else None


def _recommended(run: RunDir) -> str | None:
    if not run.results.is_file():
        return None
    name = read_json(run.results).get("recommended")
    if not isinstance(name, str):
        raise RunFolderDamaged(file=run.results, reason="it has no recommended variant")
    return name


def task_of(folder: Path) -> Task:
    """The task that a model folder was made for: `student.json` says it, else the architecture does.

    Raises `ModelFolderNotFound`.
    """
    for said in (folder / "student.json", folder / "teacher.json"):
        made = read_json(said).get("task") if said.is_file() else None
        if made is None:
            continue
        if not isinstance(made, dict) or not isinstance(made.get("name"), str):
            raise RunFolderDamaged(file=said, reason="its task has no name")
        if made["name"] in task_names():
            return load_task(made["name"], made.get("options"))
    for task in map(load_task, task_names()):
        if has_head(folder, task.auto_class):
            return task
    named = ", ".join(architectures(folder)) or "unnamed"
    raise ModelHasNoTask(folder=folder, architecture=named, known=", ".join(task_names()))


def variant_pipeline(folder: Path, task: Task, variant: str | None, threads: int | None = None) -> Any:
    """The pipeline of one variant: an export's own, and PyTorch's where the name is none of an export."""
    tokenizer = load_tokenizer(folder)
    form = form_of(variant) if variant else None
    if form is None:
        return model_pipeline(task, load_model(folder, task.auto_class), tokenizer)
    entry = FORMATS[form.format]
    return entry.pipeline(entry.load(folder, task.auto_class, form, threads), task, tokenizer)
