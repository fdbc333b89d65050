"""Predict with a model that was made here: always a transformers or Optimum pipeline, right for the task."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nlp_distill.errors import ModelFolderNotFound, ModelHasNoTask, RunFolderDamaged, VariantUnknown
from nlp_distill.loading import architectures, has_head, load_model, load_ort, load_tokenizer, onnx_files
from nlp_distill.rundir import RunDir, read_json
from nlp_distill.sources import resolve
from nlp_distill.task import Task, load_task, task_names

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

LARGEST_BATCH = 64
PRECISIONS = {"student-onnx-int8": "int8", "student-onnx-fp32": "fp32"}


@dataclass(frozen=True)
class Chosen:
    """A variant to predict with. `batch_size`: rows at once that its scores were made with, as far as is known."""

    folder: Path
    variant: str
    task: Task
    batch_size: int

    def pipeline(self, threads: int | None = None) -> Any:
        """Load it."""
        return variant_pipeline(self.folder, self.task, PRECISIONS.get(self.variant), threads)


def load_pipeline(path: str | Path, variant: str | None = None, threads: int | None = None) -> Any:
    """A pipeline for a run, a model folder or a Hub id.

    `variant`: `student`, `student-onnx-fp32`, `student-onnx-int8`, and in a run `teacher` and `control`; unset:
    the one that the results recommend where its runtime is installed, else the smallest that runs here. Inputs are
    cut at the tokenizer's `model_max_length`, and batches have one row unless the call says otherwise: the answers of
    dynamic int8 depend on what else is in the batch. Raises `ModelFolderNotFound`, `VariantUnknown`, `ModelError`.
    """
    return load_variant(path, variant, threads)[1]


def load_variant(path: str | Path, variant: str | None = None, threads: int | None = None) -> tuple[Task, Any]:
    """As `load_pipeline`, with the task that the model was made for."""
    chosen = choose(path, variant)
    return chosen.task, chosen.pipeline(threads)


def choose(path: str | Path, variant: str | None = None) -> Chosen:
    """The variant that `load_pipeline` would load. Raises as it does."""
    run = RunDir(path)
    others: dict[str, Path] = {}
    if run.exists():
        others = {"teacher": run.teacher, "control": run.control}
        folder, said = run.model, run.results
    elif Path(path).is_dir() or "/" not in str(path):
        folder, said = Path(path), Path(path) / "results.json"
    else:
        folder = resolve(str(path), exports=True).folder
        said = folder / "results.json"
    others = {name: other for name, other in others.items() if (other / "config.json").is_file()}
    if not (folder / "config.json").is_file() and variant not in others:
        raise ModelFolderNotFound(folder=path)
    results = read_json(said) if said.is_file() else {}
    names = [*(name for name, precision in PRECISIONS.items() if onnx_files(folder, precision)), "student", *others]
    # Before the last stage no export of a run is proven yet.
    usable = [name for name in names if _installed(name)] if results or not run.exists() else ["student"]
    chosen = variant or _recommended(said, results) or usable[0]
    if chosen not in names and (variant or run.exists()):
        raise VariantUnknown(variant=chosen, folder=path, known=", ".join(names))
    if variant is None and chosen not in usable:
        chosen = usable[0]
    return Chosen(others.get(chosen, folder), chosen, task_of(others.get(chosen, folder)), _batch(results, chosen))


def _installed(variant: str) -> bool:
    return variant not in PRECISIONS or find_spec("onnxruntime") is not None


def _recommended(file: Path, results: dict[str, Any]) -> str | None:
    name = results.get("recommended")
    if results and not isinstance(name, str):
        raise RunFolderDamaged(file=file, reason="it has no recommended variant")
    return name


def _batch(results: dict[str, Any], variant: str) -> int:
    """Rows at once; one where results say nothing, which is right for every variant."""
    try:
        entry = next(entry for entry in results["variants"] if entry["name"] == variant)
        return max(1, min(int(entry["settings"]["pipeline_batch"]), LARGEST_BATCH))
    except (LookupError, StopIteration, TypeError, ValueError):
        return 1


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
