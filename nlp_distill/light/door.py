"""Which model folders can be answered for without torch, and their models."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nlp_distill.errors import NotLight
from nlp_distill.exports.formats import form_of
from nlp_distill.light.stated import says_all
from nlp_distill.loading import OFFSET_POSITIONS, architectures, onnx_files
from nlp_distill.rundir import read_json
from nlp_distill.vetting import check_folder, inside, read_settings, tokenizer_settings

if TYPE_CHECKING:
    from nlp_distill.light.classification import LightClassifier
    from nlp_distill.light.question_answering import LightAnswerer


@dataclass(frozen=True)
class Head:
    """A head that can be answered for: the task of its models, what answers, and settings its tokenizer must have."""

    task: str
    module: str
    kind: str
    needs: tuple[str, ...] = ()


HEADS = {
    "ForSequenceClassification": Head("classification", "nlp_distill.light.classification", "LightClassifier"),
    "ForQuestionAnswering": Head(
        "question_answering", "nlp_distill.light.question_answering", "LightAnswerer", ("cls_token",)
    ),
}
DECIDES = ("return_all_scores", "function_to_apply", "task_specific_params")
"""Settings of a config by which pipelines answer otherwise."""


def light_task(folder: Path, variant: str) -> str | None:
    """The task (`classification`, `question_answering`) of a folder's variant that needs no torch; else None.

    Whatever is not plainly one of the two, as this project or transformers saves it, is left to the pipelines.
    """
    head = _head(folder, variant)
    return head.task if head else None


def _head(folder: Path, variant: str) -> Head | None:
    config = read_settings(folder, "config.json")
    named = architectures(folder)
    head = next((head for ending, head in HEADS.items() if named and named[0].endswith(ending)), None)
    plain = (
        head is not None
        and _file(folder, variant)
        and not config.get("is_encoder_decoder")
        and isinstance(config.get("max_position_embeddings"), int)
        and (config.get("model_type") not in OFFSET_POSITIONS or isinstance(config.get("pad_token_id"), int))
        and not any(config.get(name) for name in DECIDES)
        and made_for(folder)[0] in (None, head.task)
        and says_all(folder)
        and all(tokenizer_settings(folder, "tokenizer_config.json").get(name) for name in head.needs)
    )
    return head if plain else None


def made_for(folder: Path) -> tuple[str | None, dict[str, Any]]:
    """The task that a folder says it was made for, with its options."""
    for name in ("student.json", "teacher.json"):
        if (folder / name).is_file():
            task = read_json(folder / name).get("task")
            if isinstance(task, dict):
                return str(task.get("name")), dict(task.get("options") or {})
    return None, {}


def _file(folder: Path, variant: str) -> str | None:
    """The one graph of an ONNX variant."""
    form = form_of(variant)
    return onnx_files(folder, form.suffix).get("file_name") if form and form.format == "onnx" else None


def load_light(folder: Path, variant: str, threads: int = 1) -> LightClassifier | LightAnswerer:
    """An ONNX variant of a model folder. Raises `ModelNotFound`, `ModelUnsafe`, `NotLight`."""
    head, file, form = _head(folder, variant), _file(folder, variant), form_of(variant)
    if head is None or file is None or form is None:
        raise NotLight(variant=variant, folder=folder)
    check_folder(folder)
    for entry in (folder / "onnx").iterdir():
        inside(folder, f"onnx/{entry.name}")
    config = read_settings(folder, "config.json")
    kind = getattr(import_module(head.module), head.kind)
    model: LightClassifier | LightAnswerer = kind(folder, file, config, made_for(folder)[1], threads)
    if form.batch > 1:
        model.graph.try_batches(model.tokenizer.vocabulary, model.tokenizer.model_max_length)
    return model
