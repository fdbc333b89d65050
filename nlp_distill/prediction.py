"""Predict with a model that was made here: always a transformers or Optimum pipeline, right for the task."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from nlp_distill.errors import ModelFolderNotFound, ModelHasNoTask, RunFolderDamaged, VariantUnknown
from nlp_distill.exports.formats import FORMATS, form_of, forms_there
from nlp_distill.loading import architectures, has_head, load_model, load_tokenizer
from nlp_distill.rundir import RunDir, read_json
from nlp_distill.sources import resolve
from nlp_distill.task import Task, load_task, task_names

LARGEST_BATCH = 64


@dataclass(frozen=True)
class Chosen:
    """A variant to predict with. `batch_size`: rows at once that its scores were made with, as far as is known;
    `pairs`: whether it was made for two texts.
    """

    folder: Path
    variant: str
    batch_size: int
    pairs: bool = False

    @cached_property
    def task(self) -> Task:
        """The task that it was made for."""
        return task_of(self.folder)

    def pipeline(self, threads: int | None = None) -> Any:
        """Load it."""
        return variant_pipeline(self.folder, self.task, self.variant, threads)


def load_pipeline(path: str | Path, variant: str | None = None, threads: int | None = None) -> Any:
    """A pipeline for a run, a model folder or a Hub id.

    `variant`: `student`, `student-onnx-int8` and so on (docs/exports.md), and in a run `teacher` and `control`; unset:
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
    """The variant that `load_pipeline` would load; nothing is loaded, nothing heavy imported. Raises as it does."""
    run = RunDir(path)
    if not run.exists() and run.path.name == run.model.name and RunDir(run.path.parent).exists():
        # The deliverable of a run: what is there before the run's last stage is not proven yet.
        run = RunDir(run.path.parent)
    others: dict[str, Path] = {}
    if run.exists():
        others = {"teacher": run.teacher, "control": run.control}
        folder, said = run.model, run.results
    elif Path(path).is_dir() or not {"/", "@"} & {*str(path)}:
        folder, said = Path(path), Path(path) / "results.json"
    else:
        folder = resolve(str(path), exports=True).folder
        said = folder / "results.json"
    others = {name: other for name, other in others.items() if (other / "config.json").is_file()}
    if not (folder / "config.json").is_file() and variant not in others:
        raise ModelFolderNotFound(folder=path)
    results = read_json(said) if said.is_file() else None
    names = [*(form.variant for form in forms_there(folder)), "student", *others]
    # Before the last stage no export of a run is proven yet.
    usable = _usable(folder) if results is not None or not run.exists() else ["student"]
    chosen = variant or _recommended(said, results) or usable[0]
    if chosen not in names and (variant or run.exists()):
        raise VariantUnknown(variant=chosen, folder=path, known=", ".join(names))
    if variant is None and chosen not in (*usable, *others):
        chosen = usable[0]
    pairs = "text_pair" in (results or {}).get("inputs", [])
    return Chosen(others.get(chosen, folder), chosen, _batch(results, chosen), pairs)


def _usable(folder: Path) -> list[str]:
    """The exported variants whose runtime is installed, the smallest first, and PyTorch's."""
    sizes = {
        form.variant: sum(file.stat().st_size for file in FORMATS[form.format].files(folder, form))
        for form in forms_there(folder)
        if FORMATS[form.format].installed
    }
    return [*sorted(sizes, key=lambda name: sizes[name]), "student"]


def _recommended(file: Path, results: dict[str, Any] | None) -> str | None:
    if results is None:
        return None
    name = results.get("recommended")
    if not isinstance(name, str):
        raise RunFolderDamaged(file=file, reason="it has no recommended variant")
    return name


def _batch(results: dict[str, Any] | None, variant: str) -> int:
    """Rows at once; one where results say nothing, which is right for every variant."""
    try:
        entry = next(entry for entry in (results or {})["variants"] if entry["name"] == variant)
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


def variant_pipeline(folder: Path, task: Task, variant: str | None, threads: int | None = None) -> Any:
    """The pipeline of one variant: an export's own, and PyTorch's where the name is none of an export."""
    tokenizer = load_tokenizer(folder)
    form = form_of(variant) if variant else None
    if form is None:
        from nlp_distill.scores import model_pipeline

        return model_pipeline(task, load_model(folder, task.auto_class), tokenizer)
    entry = FORMATS[form.format]
    return entry.pipeline(entry.load(folder, task.auto_class, form, threads), task, tokenizer)
