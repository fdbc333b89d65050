"""Which model folders can be answered for without torch, and their models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nlp_distill.errors import ModelNotFound
from nlp_distill.light.classification import LightClassifier
from nlp_distill.light.question_answering import LightAnswerer
from nlp_distill.light.tokenizing import says_all
from nlp_distill.loading import OFFSET_POSITIONS, architectures, onnx_files
from nlp_distill.rundir import read_json
from nlp_distill.vetting import check_folder, inside, read_settings

HEADS = {
    "ForSequenceClassification": "classification",
    "ForQuestionAnswering": "question_answering",
}
DECIDES = ("return_all_scores", "function_to_apply", "task_specific_params")
"""Settings of a config by which pipelines answer otherwise."""


def light_task(folder: Path, precision: str) -> str | None:
    """`classification` or `question_answering` where a folder's ONNX file can be served without torch; else None.

    Whatever is not plainly one of the two, as this project or transformers saves it, is left to the pipelines.
    """
    config = read_settings(folder, "config.json")
    named = architectures(folder)
    head = next((task for ending, task in HEADS.items() if named and named[0].endswith(ending)), None)
    plain = (
        head is not None
        and "file_name" in onnx_files(folder, precision)
        and not config.get("is_encoder_decoder")
        and isinstance(config.get("max_position_embeddings"), int)
        and (config.get("model_type") not in OFFSET_POSITIONS or isinstance(config.get("pad_token_id"), int))
        and not any(config.get(name) for name in DECIDES)
        and _made_for(folder)[0] in (None, head)
        and says_all(folder)
    )
    return head if plain else None


def _made_for(folder: Path) -> tuple[str | None, dict[str, Any]]:
    """The task that a folder says it was made for, with its options."""
    for name in ("student.json", "teacher.json"):
        if (folder / name).is_file():
            task = read_json(folder / name).get("task")
            if isinstance(task, dict):
                return str(task.get("name")), dict(task.get("options") or {})
    return None, {}


def load_light(folder: Path, precision: str, threads: int = 1) -> LightClassifier | LightAnswerer:
    """The model of a folder's ONNX file of a precision (`fp32`, `int8`). Raises `ModelNotFound`, `ModelUnsafe`."""
    task = light_task(folder, precision)
    if task is None:
        raise ModelNotFound(
            reference=str(folder),
            reason="it cannot be served without torch",
            fix="Use nlp_distill.load_pipeline.",
        )
    check_folder(folder)
    files = onnx_files(folder, precision)
    for file in (folder / "onnx").iterdir():
        inside(folder, f"onnx/{file.name}")
    config = read_settings(folder, "config.json")
    model: LightClassifier | LightAnswerer
    if task == "classification":
        model = LightClassifier(folder, files["file_name"], config, threads)
    else:
        model = LightAnswerer(folder, files["file_name"], config, _made_for(folder)[1], threads)
    if precision == "fp32":
        model.graph.try_batches(model.tokenizer.vocabulary, model.tokenizer.model_max_length)
    return model
