"""The rows that models are scored on and timed at: those that were asked for, or those of a model's own run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nlp_distill.comparing.blocks import Cell
from nlp_distill.comparing.subjects import Subject
from nlp_distill.cutting import Slices, slices
from nlp_distill.errors import DataError, HubUnreachable, LabelMismatch, ModelHasNoTask, NotMeasurable
from nlp_distill.loading import load_config, load_tokenizer
from nlp_distill.prediction import choose, task_of
from nlp_distill.recipe import Data
from nlp_distill.recipe_file import load_recipe
from nlp_distill.scores import agreement, interval, paired_interval, predict
from nlp_distill.sources import Source
from nlp_distill.task import Task, load_task
from nlp_distill.teacher import check_labels

if TYPE_CHECKING:
    from datasets import Dataset
    from numpy.typing import NDArray

REAL = "real"
QUANTILES = np.linspace(0.03, 0.97, 16)
GROUPS = 8


@dataclass(frozen=True)
class Known:
    """What is known of rows. `why`: a sentence where there are none."""

    task: Task | None
    slices: Slices | None
    why: str = ""

    @property
    def rows(self) -> Dataset | None:
        """Those that are scored."""
        return self.slices.evaluation if self.slices else None


def known_rows(reference: str, run: Path | None, data: str | None, task: str | None) -> Known:
    """The rows to use. `reference`: the first model; `run`: the run that a model lies in; `data`, `task`: as asked.

    What was asked for must be there; what a run says of its data may be gone. Raises `DataError`, `NotMeasurable`.
    """
    recipe = load_recipe(str(run)) if run is not None else None
    if data is not None:
        name = task or (recipe.task if recipe else None) or _task_name(reference)
        made = load_task(name, recipe.options if recipe and recipe.task == name else None)
        spec = Data(dataset=data)
        return Known(made, slices(made.load_data(spec), spec, made))
    if recipe is None or task not in (None, recipe.task):
        return Known(load_task(task) if task else None, None, "no data were given (--data), so nothing is scored")
    made = load_task(recipe.task, recipe.options)
    try:
        return Known(made, slices(made.load_data(recipe.data), recipe.data, made))
    except (DataError, HubUnreachable) as error:
        return Known(None, None, f"the run's own data are not here, so nothing is scored ({error})")


def _task_name(reference: str) -> str:
    file = Path(reference).expanduser()
    if file.is_file():
        # A graph lies beside its model's config, or a folder below.
        reference = str(next((place for place in file.parents[:2] if (place / "config.json").is_file()), file.parent))
    try:
        return task_of(choose(reference).folder).name
    except ModelHasNoTask as error:
        raise NotMeasurable(
            reference=reference, reason="nothing says what the data are for", fix="Say it with --task."
        ) from error


def cells(subject: Subject, known: Known, lengths: Sequence[int], batches: Sequence[int], limit: int) -> list[Cell]:
    """How a subject is called: at the lengths of the data where there are any, and at fixed ones within `limit`."""
    real: list[Cell] = []
    if known.task is not None and known.rows is not None:
        tokenizer = load_tokenizer(subject.folder)
        features = known.task.features(known.rows, tokenizer, tokenizer.model_max_length)
        found = np.array([len(ids) for ids in features["input_ids"][:]])
        real = [_real(found, batch) for batch in batches]
    fixed = [Cell(length, batch, (length,), length * batch) for length in _within(lengths, limit) for batch in batches]
    return real + fixed


def _within(lengths: Sequence[int], limit: int) -> list[int]:
    return sorted({min(length, limit) for length in lengths})


def _real(lengths: NDArray[np.int64], batch: int) -> Cell:
    """Single rows from all over the distribution, or batches of rows as they come, padded to their longest."""
    if batch == 1:
        chosen = [int(length) for length in np.quantile(lengths, QUANTILES, method="nearest")]
        return Cell(REAL, 1, tuple(chosen), sum(chosen))
    drawn = np.random.default_rng(0).choice(lengths, (GROUPS, batch))
    return Cell(REAL, batch, tuple(int(group.max()) for group in drawn), int(drawn.sum()))


def answer_tokens(subject: Subject, known: Known) -> int | None:
    """Tokens of a long answer in the data; None where nothing is known of them."""
    if known.task is None or known.rows is None or not load_config(subject.folder).is_encoder_decoder:
        return None
    tokenizer = load_tokenizer(subject.folder)
    return known.task.answer_tokens(known.task.features(known.rows, tokenizer, tokenizer.model_max_length))


def scored(
    subjects: Sequence[Subject], against: Subject | None, known: Known, notify: Callable[..., None]
) -> dict[str, dict[str, Any]]:
    """Score, interval, and what agrees with `against`, by name. Nothing but a note for a model without the head."""
    task, rows = known.task, known.rows
    if task is None or rows is None:
        return {subject.name: {"score": None, "note": known.why} for subject in subjects}
    raws = {subject.name: _answers(subject, task, rows, notify) for subject in subjects if _fits(subject, task)}
    entries: dict[str, dict[str, Any]] = {}
    for subject in subjects:
        raw = raws.get(subject.name)
        if raw is None:
            entries[subject.name] = {"score": None, "note": f"it has no head for {task.name}, so it is not scored"}
            continue
        score = {name: round(value, 2) for name, value in task.score(raw, rows).items()}
        entry: dict[str, Any] = {"score": score, "score_ci95": interval(task, raw, rows), "n": len(raw)}
        other = raws.get(against.name) if against else None
        if other is not None and subject is not against:
            same = agreement(task, raw, other)
            entry["agreement"] = None if same is None else round(same, 4)
            entry["gain"] = round(score[task.primary_metric] - task.score(other, rows)[task.primary_metric], 2)
            entry["gain_ci95"] = paired_interval(task, raw, other, rows)
        entries[subject.name] = entry
    return entries


def _fits(subject: Subject, task: Task) -> bool:
    """Whether a model has the head. Raises `LabelMismatch` where it has other labels."""
    if subject.task is None:
        return False
    try:
        check_labels(Source(subject.name, subject.folder, subject.name, None, ""), task)
    except LabelMismatch as error:
        raise NotMeasurable(
            reference=subject.name,
            reason=f"its labels ({error.fields['teacher']}) are not the data's ({error.fields['data']})",
            fix="Give --data that it was made for, in the same order of labels.",
        ) from error
    return True


def _answers(subject: Subject, task: Task, rows: Dataset, notify: Callable[..., None]) -> Any:
    pipe = subject.pipeline(task)
    if task.label_names:
        # Names such as LABEL_0 say nothing; their order has been compared.
        pipe.model.config.id2label = dict(enumerate(task.label_names))

    def progress(done: int, total: int) -> None:
        notify("progress", stage=f"scoring: {subject.name}", step=done, steps=total)

    return predict(pipe, task, rows, subject.batch, progress)
