"""Predict with a model that was made here: always a transformers or Optimum pipeline, right for the task."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from nlp_distill.errors import ModelFolderNotFound, VariantUnknown
from nlp_distill.loading import load_model, load_ort, load_tokenizer, read_config
from nlp_distill.rundir import RunDir
from nlp_distill.sources import resolve
from nlp_distill.task import load_task, task_names

ONNX_FILES = {"student-onnx-int8": "model_quantized.onnx", "student-onnx-fp32": "model.onnx"}


def load_pipeline(path: str | Path, variant: str | None = None, threads: int | None = None) -> Any:
    """A pipeline for a run, a model folder or a Hub id.

    `variant`: `student`, `student-onnx-fp32`, `student-onnx-int8`, and in a run `teacher` and `control`; unset:
    the one that the run recommends, else the smallest that is there. Inputs are cut at the tokenizer's
    `model_max_length`, and batches have one row unless the call says otherwise: the answers of dynamic int8
    depend on what else is in the batch. Raises `ModelFolderNotFound`, `VariantUnknown`, `ModelError`.
    """
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
    there = [name for name, file in ONNX_FILES.items() if (folder / "onnx" / file).is_file()]
    names = [*there, "student", *others]
    variant = variant or names[0]
    if variant not in names:
        raise VariantUnknown(variant=variant, folder=path, known=", ".join(names))
    folder = others.get(variant, folder)
    architecture = (read_config(folder).get("architectures") or [""])[0]
    for task in map(load_task, task_names()):
        if architecture.endswith(task.auto_class.removeprefix("AutoModel")):
            return variant_pipeline(folder, task.auto_class, task.pipeline_task, ONNX_FILES.get(variant), threads)
    raise ModelFolderNotFound(folder=path)


def _recommended(run: RunDir) -> str | None:
    if not run.results.is_file():
        return None
    name: str | None = json.loads(run.results.read_text(encoding="utf-8"))["recommended"]
    return name


def variant_pipeline(
    folder: Path, auto_class: str, pipeline_task: str, onnx_file: str | None, threads: int | None = None
) -> Any:
    """The pipeline of one variant: PyTorch, or ONNX Runtime through Optimum when `onnx_file` is given."""
    tokenizer = load_tokenizer(folder)
    limits = {"truncation": True, "max_length": tokenizer.model_max_length}
    if onnx_file is None:
        import transformers

        model = load_model(folder, auto_class)
        return transformers.pipeline(pipeline_task, model=model, tokenizer=tokenizer, device="cpu", **limits)
    ort = load_ort(folder, auto_class, onnx_file, threads)
    from optimum.pipelines import pipeline

    return pipeline(pipeline_task, model=ort, tokenizer=tokenizer, accelerator="ort", **limits)
