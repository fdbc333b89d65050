"""Which model folders can be answered for without torch, and their models."""

from __future__ import annotations

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

HEADS = {
    "ForSequenceClassification": "classification",
    "ForQuestionAnswering": "question_answering",
}
DECIDES = ("return_all_scores", "function_to_apply", "task_specific_params")
"""Settings of a config by which pipelines answer otherwise."""


def light_task(folder: Path, variant: str) -> str | None:
    """`classification` or `question_answering` where a folder's variant can be served without torch; else None.

    Whatever is not plainly one of the two, as this project or transformers saves it, is left to the pipelines.
    """
    config = read_settings(folder, "config.json")
    named = architectures(folder)
    head = next((task for ending, task in HEADS.items() if named and named[0].endswith(ending)), None)
    plain = (
        head is not None
        and _file(folder, variant)
        and not config.get("is_encoder_decoder")
        and isinstance(config.get("max_position_embeddings"), int)
        and (config.get("model_type") not in OFFSET_POSITIONS or isinstance(config.get("pad_token_id"), int))
        and not any(config.get(name) for name in DECIDES)
        and made_for(folder)[0] in (None, head)
        and says_all(folder)
        and (head != "question_answering" or bool(tokenizer_settings(folder, "tokenizer_config.json").get("cls_token")))
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
    task, file, form = light_task(folder, variant), _file(folder, variant), form_of(variant)
    if task is None or file is None or form is None:
        raise NotLight(variant=variant, folder=folder)
    check_folder(folder)
    for entry in (folder / "onnx").iterdir():
        inside(folder, f"onnx/{entry.name}")
    config = read_settings(folder, "config.json")
    model: LightClassifier | LightAnswerer
    if task == "classification":
        from nlp_distill.light.classification import LightClassifier

        model = LightClassifier(folder, file, config, threads)
    else:
        from nlp_distill.light.question_answering import LightAnswerer

        model = LightAnswerer(folder, file, config, made_for(folder)[1], threads)
    if form.batch > 1:
        model.graph.try_batches(model.tokenizer.vocabulary, model.tokenizer.model_max_length)
    return model
