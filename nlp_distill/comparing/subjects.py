"""What a person names → a model that can be measured: ours or not, PyTorch or ONNX."""

from __future__ import annotations

import os
import shutil
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nlp_distill.errors import ModelHasNoTask, ModelNotFound, NotMeasurable, shown
from nlp_distill.exports.format import Form
from nlp_distill.exports.formats import FORMATS, form_of, forms_there
from nlp_distill.loading import has_head, load_config, load_tokenizer
from nlp_distill.measuring import Measured, files_to_run
from nlp_distill.prediction import choose, task_of, variant_pipeline
from nlp_distill.rundir import RunDir
from nlp_distill.task import Task
from nlp_distill.vetting import check_folder, inside

PARTS = ("encoder_model", "decoder_model", "decoder_with_past_model")
BARE, BARE_ONNX = "AutoModel", "AutoModelForFeatureExtraction"
BATCH = 16
"""Rows in a call of PyTorch when it is scored."""
NEW_TOKENS, GENERATES = 32, "AutoModelForSeq2SeqLM"
"""Length of an answer of a model that generates, where no data say how long answers are."""


@dataclass(frozen=True)
class Subject:
    """A model to be measured. `variant`: the form of it; `folder`: its files, laid out as ours are; `task`: None for
    a model without a head that we know; `run`: the folder of the run that it lies in; `ours`: laid out as ours are,
    so that its form is what its name says.
    """

    name: str
    variant: str
    folder: Path
    task: Task | None
    run: Path | None
    ours: bool = True

    @property
    def form(self) -> Form | None:
        """What its files are; None for PyTorch."""
        return form_of(self.variant)

    @property
    def exported(self) -> str | None:
        """The variant's name where it is an export; None for PyTorch."""
        return self.variant if self.form else None

    @property
    def runtime(self) -> str:
        """The engine."""
        return FORMATS[self.form.format].runtime if self.form else "pytorch"

    @property
    def batch(self) -> int:
        """Rows in a call when it is scored: one where the answers of an export may depend on the rest of a batch."""
        return self.form.batch if self.form and self.ours else 1 if self.form else BATCH

    @property
    def limit(self) -> int:
        """Tokens that it can read."""
        return int(load_tokenizer(self.folder).model_max_length)

    @property
    def bytes(self) -> int:
        """Of all files that it needs."""
        return sum(file.stat().st_size for file in files_to_run(self.folder, self.exported))

    def measured(self, name: str, new_tokens: int | None) -> Measured:
        """What a process is told to load."""
        bare = BARE_ONNX if self.form else BARE
        auto_class = self.task.auto_class if self.task else bare
        if auto_class == GENERATES and load_config(self.folder).is_encoder_decoder:
            new_tokens = new_tokens or NEW_TOKENS
        return Measured(name, str(self.folder), auto_class, self.exported, new_tokens)

    def pipeline(self, task: Task) -> Any:
        """The pipeline that a user would call, of a task that has read its data."""
        return variant_pipeline(self.folder, task, self.variant)


def subjects(references: list[str], task: Task | None, stack: ExitStack) -> list[Subject]:
    """Each reference once, under a name of its own. Raises `NotMeasurable`, `ModelError`."""
    found: list[Subject] = []
    for reference in references:
        taken = [subject.name for subject in found]
        name = shown(reference)
        number = sum(other.rsplit(" #")[0] == name for other in taken)
        found.append(_subject(reference, f"{name} #{number + 1}" if number else name, task, stack))
    return found


def _subject(reference: str, name: str, task: Task | None, stack: ExitStack) -> Subject:
    path = Path(os.path.expanduser(reference))
    ours = True
    if path.is_file():
        variant, folder, ours = _file(path, stack)
    elif (path / "config.json").is_file() and _root_graphs(path):
        chosen = choose(_as_ours(path, {file.name: file.name for file in _root_graphs(path)}, stack))
        variant, folder, ours = chosen.variant, chosen.folder, False
    else:
        chosen = choose(reference)
        variant, folder = chosen.variant, chosen.folder
    return Subject(name, variant, folder, _task(folder, task), run_of(path), ours)


def run_of(path: Path) -> Path | None:
    """The folder of the run that a model's file or folder lies in, or is."""
    return next((place for place in (path, *path.parents[:3]) if RunDir(place).exists()), None)


def _task(folder: Path, asked: Task | None) -> Task | None:
    """The task that was asked for where the model has a head for it, else the one that it has a head for."""
    if asked is not None:
        return asked if has_head(folder, asked.auto_class) else None
    try:
        return task_of(folder)
    except ModelHasNoTask:
        return None


def _root_graphs(folder: Path) -> list[Path]:
    """ONNX files beside the config, as `optimum-cli export onnx` leaves them; none where weights or `onnx/` are."""
    if (folder / "onnx").is_dir() or any(folder.glob("*.safetensors")):
        return []
    return sorted(folder.glob("*.onnx"))


def _file(path: Path, stack: ExitStack) -> tuple[str, Path, bool]:
    """Variant, folder and whose: one file of a model, its weights for PyTorch, an export of ours, or any graph."""
    folder = path.parent
    if path.suffix == ".safetensors":
        return "student", folder, True
    if (folder.parent / "config.json").is_file() and not (folder / "config.json").is_file():
        folder = folder.parent
    for form in forms_there(folder):
        if path in FORMATS[form.format].files(folder, form):
            return form.variant, folder, True
    if path.suffix != ".onnx":
        raise NotMeasurable(reference=path, reason="it is no model that we know", fix="Name the model's folder.")
    if path.stem.startswith(PARTS):
        raise NotMeasurable(reference=path, reason="it is one part of a model", fix=f"Name its folder, {folder}.")
    return "student-onnx-fp32", _as_ours(folder, {str(path.relative_to(folder)): "model.onnx"}, stack), False


def _as_ours(folder: Path, graphs: dict[str, str], stack: ExitStack) -> Path:
    """A copy of a model's small files, with some of its graphs where ours lie; gone when the stack is left.

    `graphs`: file in the folder → name in `onnx/`. Weights beyond 2 GB lie beside a graph under the name that it says.
    """
    if not (folder / "config.json").is_file():
        raise ModelNotFound(
            reference=str(folder),
            reason="it has no config.json",
            fix="Put the model's config.json and tokenizer beside its graph.",
        )
    check_folder(folder)
    place = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="nlp-distill-"))) / folder.resolve().name
    (place / "onnx").mkdir(parents=True)
    for file in folder.iterdir():
        if file.suffix in (".json", ".txt", ".model", ".spm") and inside(folder, file.name):
            shutil.copyfile(file, place / file.name)
    for name, ours in graphs.items():
        file = folder / name
        for part in sorted(file.parent.glob(f"{file.name}*")):
            if inside(folder, str(part.relative_to(folder))):
                shutil.copyfile(part, place / "onnx" / (ours if part == file else part.name))
    return place
