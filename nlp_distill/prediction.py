"""Predict with a model that was made here: always a transformers or Optimum pipeline, right for the task."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from nlp_distill.errors import ModelFolderNotFound, ModelHasNoTask, RunFolderDamaged, VariantUnknown
from nlp_distill.loading import architectures, has_head, load_model, load_ort, load_tokenizer, onnx_files
from nlp_distill.rundir import RunDir, read_json
from nlp_distill.sources import resolve
from nlp_distill.task import Task, load_task, task_names

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

PRECISIONS = {"student-onnx-int8": "int8", "student-onnx-fp32": "fp32"}


def load_pipeline(path: str | Path, variant: str | None = None, threads: int | None = None) -> Any:
    """A pipeline for a run, a model folder or a Hub id.

    `variant`: `student`, `student-onnx-fp32`, `student-onnx-int8`, and in a run `teacher` and `control`; unset:
    the one that the run recommends, else the smallest that is there. Inputs are cut at the tokenizer's
    `model_max_length`, and batches have one row unless the call says otherwise: the answers of dynamic int8
    depend on what else is in the batch. Raises `ModelFolderNotFound`, `VariantUnknown`, `ModelError`.
    """
    return load_variant(path, variant, threads)[1]


def load_variant(path: str | Path, variant: str | None = None, threads: int | None = None) -> tuple[Task, Any]:
    """As `load_pipeline`, with the task that the model was made for."""
    variant, folder = find_variant(path, variant)
    task = task_of(folder)
    return task, variant_pipeline(folder, task, PRECISIONS.get(variant), threads)


def find_variant(path: str | Path, variant: str | None = None) -> tuple[str, Path]:
    """The name and the folder of the variant that `load_pipeline` would load."""
    run = RunDir(path)
    others: dict[str, Path] = {}
    if run.exists():
        others = {"teacher": run.teacher, "control": run.control}
        # Before the last stage no export is proven yet.
        variant = variant or _recommended(run) or "student"
        folder = run.model
    elif Path(path).is_dir() or not {"/", "@"} & {*str(path)}:
        folder = Path(path)
    else:
        folder = resolve(str(path), exports=True).folder
    others = {name: other for name, other in others.items() if (other / "config.json").is_file()}
    if not (folder / "config.json").is_file() and variant not in others:
        raise ModelFolderNotFound(folder=path)
    there = [name for name, precision in PRECISIONS.items() if onnx_files(folder, precision)]
    names = [*there, "student", *others]
    variant = variant or names[0]
    if variant not in names:
        raise VariantUnknown(variant=variant, folder=path, known=", ".join(names))
    return variant, others.get(variant, folder)


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


def variant_pipeline(folder: Path, task: Task, precision: str | None, threads: int | None = None) -> Any:
    """The pipeline of one variant: PyTorch, or ONNX Runtime through Optimum when `precision` is given."""
    tokenizer = load_tokenizer(folder)
    if precision is None:
        return model_pipeline(task, load_model(folder, task.auto_class), tokenizer)
    ort = load_ort(folder, task.auto_class, precision, threads)
    from optimum.pipelines import pipeline

    settings = task.pipeline_settings(tokenizer)
    return pipeline(task.pipeline_task, model=ort, tokenizer=tokenizer, accelerator="ort", **settings)


def model_pipeline(task: Task, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> Any:
    """The task's pipeline around a model in memory, on the model's device."""
    import transformers

    settings = task.pipeline_settings(tokenizer)
    return transformers.pipeline(task.pipeline_task, model=model, tokenizer=tokenizer, device=model.device, **settings)
