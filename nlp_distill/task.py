"""The adapter contract, and tasks found by entry point.

A task only answers the questions that differ between tasks; it never trains. Built-in tasks register exactly
as a third party's would: an entry point in the group ``nlp_distill.tasks`` that names a `Task` subclass. A
task's `recipes/*.yaml` and `data/NAME/` lie beside its module and are found without importing it.
"""

from __future__ import annotations

import difflib
import importlib.util
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import BaseModel, ValidationError

from nlp_distill.errors import NotYet, OptionInvalid, PairUnused, RoleInvalid, RoleUnknown, TaskUnknown
from nlp_distill.settings import Settings

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict
    from numpy.typing import NDArray
    from torch import Tensor
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

    from nlp_distill.recipe import Data

GROUP = "nlp_distill.tasks"
Batch = dict[str, Any]
PAIRED = (
    ("sentence1", "sentence2"),
    ("premise", "hypothesis"),
    ("question1", "question2"),
    ("question", "sentence"),
    ("text", "text_pair"),
    ("text1", "text2"),
    ("sentence_a", "sentence_b"),
    ("query", "passage"),
)
"""Usual names of the columns of two texts."""


@dataclass(frozen=True)
class Groups:
    """Scores by group of rows, for a report: an entry of `rows` and of each of `scores` for each of `names`.

    `by`: what a group is, in one or two words; scores are points (0–100) unless their name says their unit.
    """

    by: str
    names: list[str]
    rows: list[int]
    scores: dict[str, list[float | None]]


@dataclass(frozen=True)
class Confusion:
    """How many rows of each label were given each label: `counts[label][given]`."""

    labels: list[str]
    counts: list[list[int]]


class Options(Settings):
    """Base of a task's own settings, the recipe's `options`: each field documented with unit and range."""


class Task(ABC):
    """What we know of a task. One instance serves one run; `load_data` settles the labels and the metric."""

    name: ClassVar[str]
    auto_class: ClassVar[str]
    """The `AutoModelFor…` class that it trains."""
    pipeline_task: ClassVar[str]
    """Name of the transformers and Optimum pipeline that serves it."""
    roles: ClassVar[tuple[str, ...]]
    """What columns are for: the keys of `data.columns`."""
    usage: ClassVar[tuple[str, str]] = ("'A text of yours.'", "'A text of yours.'")
    """How a user asks: arguments of `nlp-distill predict RUN …`, and of the pipeline in Python."""
    any_tokenizer: ClassVar[bool] = False
    """Whether logits can be learnt from a teacher that reads with another tokenizer: they are of whole rows, or
    `twins` and `align` say which of its tokens stands for which."""
    offsets: ClassVar[bool] = False
    """Whether rows need to know where tokens stand in a text, which only fast tokenizers say."""
    reads_first: ClassVar[bool] = False
    """Whether an encoder's answer is made of its first token ([CLS]) alone."""
    needs_head: ClassVar[bool] = True
    """Whether a teacher without a head for the task has nothing to teach."""
    warm_start: ClassVar[bool] = False
    """Whether an encoder may be made into the encoder and the decoder of the teacher."""
    several: ClassVar[tuple[str, ...]] = ()
    """Roles that may be several columns."""
    kin: ClassVar[tuple[str, ...]] = ()
    """Columns whose equal values make rows belong together: none is learnt from where another is scored."""
    noisy: ClassVar[bool] = False
    """Whether `collate` uses an example's `noise`: each epoch then sees it otherwise, and no teacher can be cached."""
    first_losses: ClassVar[str] = (
        "[{kind: logits}, {kind: labels, weight: 0.5}, {kind: hidden}, {kind: attention, weight: 0.1}]"
    )
    """The terms that a newcomer's recipe begins with, as YAML."""
    options_model: ClassVar[type[Options]] = Options
    """The task's own settings."""

    primary_metric: str
    """Key of `score` that selection, retention and drops are about."""
    label_names: list[str]
    """Names of the labels, in the order of their ids; for regression one name; empty where there are none."""

    def __init__(self, options: Mapping[str, Any] | None = None) -> None:
        self.options: Any = self.options_model.model_validate(dict(options or {}))

    # Data

    @abstractmethod
    def load_data(self, spec: Data) -> DatasetDict:
        """Checked rows: `train`, and `validation` where the data has one (else the core cuts one).

        Settles `label_names`, `primary_metric` and `config_settings`. Raises `DataError`.
        """

    @abstractmethod
    def columns(self, dataset: Dataset, given: Mapping[str, Any]) -> dict[str, Any]:
        """Role → column: those given, the rest guessed. Raises `ColumnMissing`, `ColumnsUnclear`."""

    def texts(self, dataset: Dataset) -> Iterator[str]:
        """All texts of the rows, for a tokenizer that is learnt from them. Raises `NotYet` where there is no need."""
        raise NotYet(what=f"A new teacher for {self.name}", instead="give `teacher.model`")

    @abstractmethod
    def features(self, dataset: Dataset, tokenizer: PreTrainedTokenizerBase, max_length: int) -> Dataset:
        """Tokenised examples, unpadded: model inputs as lists, `labels`, and a stable `example_id`.

        A row may give several examples (windows of a long text). `length`: tokens of an example where they are
        more than its `input_ids`.
        """

    @abstractmethod
    def collate(
        self, tokenizer: PreTrainedTokenizerBase, config: PretrainedConfig
    ) -> Callable[[list[dict[str, Any]]], Batch]:
        """A function that pads examples to the longest of them and makes tensors for a model of this config.

        Each example carries `noise`, a number that is all the chance the function may use.
        """

    def twins(self, dataset: Dataset, ours: PreTrainedTokenizerBase, theirs: PreTrainedTokenizerBase) -> Dataset:
        """The examples of `features` with the student's tokenizer, one for one, as the teacher's reads them."""
        return self.features(dataset, theirs, theirs.model_max_length)

    def align(self, logits: dict[str, Tensor], ours: Batch, theirs: Batch) -> dict[str, Tensor]:
        """A teacher's logits of its own reading (`theirs`), as logits of the student's (`ours`)."""
        return logits

    # Training

    def config_settings(self) -> dict[str, Any]:
        """Settings for the model's config, such as `num_labels`, `id2label`, `label2id`, `problem_type`."""
        return {}

    def unfit(self, config: PretrainedConfig) -> str | None:
        """Why a model of this config cannot serve the task, and what to do about it; None where it can."""
        return None

    def unfit_tokenizer(self, tokenizer: PreTrainedTokenizerBase) -> str | None:
        """Why a tokenizer cannot serve the task, as the end of "its tokenizer does not fit:"; None where it can."""
        return None

    def configure(self, model: PreTrainedModel) -> str | None:
        """Settle how a teacher or student answers, in what is saved with it (a generation config).

        Returns what a user should know of it: settings of the model's own that were replaced.
        """
        return None

    @abstractmethod
    def logits(self, outputs: Any, batch: Batch) -> dict[str, Tensor]:
        """Named outputs to distil, [B, C], or [B, T, C] for one distribution a token; several heads, several names.

        What can never be an answer (padding of a span's start) is filled with a very small number.
        """

    @abstractmethod
    def label_loss(self, outputs: Any, batch: Batch) -> Tensor:
        """Sum over the batch of the loss on the true labels, in float32; its count is `term_mask(…, "labels", …)`."""

    def held(self, rows: Dataset) -> Dataset:
        """Rows that were cut from those to learn from, as they are scored."""
        return rows

    @abstractmethod
    def term_mask(self, batch: Batch, signal: str, stack: str) -> Tensor:
        """Which positions count for a term: shaped as `logits` for `logits` and `labels`, [B, tokens] for layers.

        `signal`: the term's kind; `stack`: `encoder`, or `decoder` of a seq2seq model.
        """

    @property
    def distribution(self) -> Literal["softmax", "sigmoid", "value"]:
        """What the logits are: one distribution, one for each label, or plain values (regression)."""
        return "softmax"

    # Answers and scores

    def answer_tokens(self, features: Dataset) -> int | None:
        """Tokens that a long answer has (the 90th percentile), for timing; None where nothing is generated."""
        return None

    def with_answers(self, dataset: Dataset, raw: NDArray[Any]) -> Dataset:
        """The rows with a teacher's answers as their labels. Raises `NotYet` where there is no such thing."""
        raise NotYet(what=f"`targets: teacher` for {self.name}", instead="use a `logits` term")

    @abstractmethod
    def pipeline_inputs(self, dataset: Dataset) -> list[Any]:
        """The rows as a user would give them to the pipeline."""

    def pipeline_settings(self, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
        """Arguments that the task's pipeline is made with; inputs are cut at the model's limit."""
        return {"truncation": True, "max_length": tokenizer.model_max_length}

    def asked(self, text: str, text_pair: str | None) -> Any:
        """What the pipeline is given for what a user typed. Raises `InputInvalid`, `PairNeeded`, `PairUnused`."""
        if text_pair is not None and "text_pair" not in self.roles:
            raise PairUnused(task=self.name)
        return text if text_pair is None else {"text": text, "text_pair": text_pair}

    def ask(self, pipe: Any, text: str, text_pair: str | None) -> Any:
        """The pipeline's answer to what a user typed. Raises what `asked` raises."""
        return pipe(self.asked(text, text_pair))

    def ask_all(self, pipe: Any, rows: list[tuple[str, str | None]], batch_size: int) -> list[Any]:
        """As `ask`, for several at once."""
        if len(rows) == 1:
            return [self.ask(pipe, *rows[0])]
        inputs = [self.asked(*row) for row in rows]
        answers = pipe(inputs, batch_size=batch_size)
        # Of one text a pipeline gives a list; among several it may leave that out.
        lists = (
            isinstance(given, str) and not isinstance(answer, list)
            for given, answer in zip(inputs, answers, strict=True)
        )
        return [[answer] if alone else answer for alone, answer in zip(lists, answers, strict=True)]

    def answers(self, pipe: Any, inputs: list[Any], batch_size: int) -> list[Any]:
        """The pipeline's answers to some inputs, one each, with all that scoring needs."""
        answers: list[Any] = pipe(inputs, batch_size=batch_size)
        return answers

    @abstractmethod
    def raw_outputs(self, answers: list[Any]) -> NDArray[Any]:
        """The pipeline's answers as an array whose first axis is the row: numbers [rows, labels], or texts [rows]."""

    @abstractmethod
    def statistics(self, raw: NDArray[Any], dataset: Dataset) -> dict[str, NDArray[Any]]:
        """All that scores are computed from, as arrays whose first axis is the row, so that rows can be resampled."""

    @abstractmethod
    def score_statistics(self, statistics: Mapping[str, NDArray[Any]]) -> dict[str, float]:
        """Metrics in points (0–100) of any sample of rows, the primary one among them."""

    def score(self, raw: NDArray[Any], dataset: Dataset) -> dict[str, float]:
        """Metrics in points (0–100) of raw outputs against the rows' labels."""
        return self.score_statistics(self.statistics(raw, dataset))

    @abstractmethod
    def decisions(self, raw: NDArray[Any]) -> NDArray[Any] | None:
        """What a user would be told, one entry a row, to compare variants by; None where there is no decision."""

    # What a report shows beyond scores; all of it may be left out

    def groups(self, raw: NDArray[Any], dataset: Dataset) -> Groups | None:
        """Scores by class, by length, by kind of question: where a model is good and where it is not."""
        return None

    def confusion(self, raw: NDArray[Any], dataset: Dataset) -> Confusion | None:
        """Which labels are taken for which; None where a row has no single label."""
        return None

    def differences(self, raw: NDArray[Any], other: NDArray[Any]) -> NDArray[Any] | None:
        """How far apart two variants' answers to each row are, [rows], 0: the same; None: nobody can say."""
        ours, theirs = self.decisions(raw), self.decisions(other)
        return None if ours is None or theirs is None else (ours != theirs).astype(float)

    def told(self, raw: NDArray[Any]) -> list[str]:
        """Each row's answer as a person reads it."""
        decided = self.decisions(raw)
        return [str(answer) for answer in (raw if decided is None else decided)]

    def truths(self, dataset: Dataset) -> list[str]:
        """Each row's true answer as a person reads it; empty where there is none to show."""
        return []

    @abstractmethod
    def example_inputs(self) -> list[Any]:
        """Some pipeline inputs, at least one; where the first is a mapping, its keys are the names of inputs."""

    def shown_input(self, names: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> Any:
        """What a card's code asks, of nobody's data; `names`: those of the inputs."""
        return self.asked("A text of yours.", "Another text of yours." if "text_pair" in names else None)

    def notes(self) -> dict[str, str]:
        """How things were decided (columns guessed, who computes the metric); shown and put into the results."""
        return {}

    def check_roles(self, given: Mapping[str, Any]) -> None:
        """Refuse columns for roles that the task does not have, or for two. Raises `RoleUnknown`, `RoleInvalid`."""
        seen: set[str] = set()
        for role, column in given.items():
            if role not in self.roles:
                near = difflib.get_close_matches(role, self.roles, n=1)
                hint = f" Did you mean '{near[0]}'?" if near else ""
                raise RoleUnknown(role=role, task=self.name, known=", ".join(self.roles), hint=hint)
            names = column if isinstance(column, list) else [column]
            if isinstance(column, list) and (role not in self.several or not names):
                raise RoleInvalid(role=role, reason=f"it has {len(names)} columns, not one column")
            for name in names:
                if name in seen:
                    raise RoleInvalid(role=role, reason=f"the column '{name}' is used twice")
                seen.add(name)


def _entry_points() -> Mapping[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=GROUP)}


def task_names() -> list[str]:
    """Names of the installed tasks."""
    return sorted(_entry_points())


def load_task(name: str, options: Mapping[str, Any] | None = None) -> Task:
    """A fresh adapter of the task with the user's options. Raises `TaskUnknown`, `OptionInvalid`."""
    points = _entry_points()
    if name not in points:
        near = difflib.get_close_matches(name, points, n=1)
        hint = f" Did you mean '{near[0]}'?" if near else ""
        raise TaskUnknown(name=name, installed=", ".join(sorted(points)) or "none", hint=hint)
    kind: type[Task] = points[name].load()
    try:
        return kind(options)
    except ValidationError as error:
        raise OptionInvalid(task=name, reason=_option_problems(error, kind.options_model)) from error


def _option_problems(error: ValidationError, model: type[BaseModel]) -> str:
    """Every wrong option in one sentence, mistyped names with the nearest right one."""
    problems = []
    for entry in error.errors():
        name = ".".join(str(part) for part in entry["loc"])
        if entry["type"] == "extra_forbidden":
            near = difflib.get_close_matches(name, model.model_fields, n=1)
            known = ", ".join(model.model_fields) or "none"
            hint = f"did you mean '{near[0]}'?" if near else f"known: {known}"
            problems.append(f"unknown option '{name}' ({hint})")
        else:
            problems.append(f"options.{name}: {entry['msg'][0].lower()}{entry['msg'][1:]}, not {entry['input']!r}")
    return "; ".join(problems)


def task_folders() -> dict[str, Path]:
    """Folder of each installed task's module, without importing the task itself."""
    folders = {}
    for name, point in sorted(_entry_points().items()):
        spec = importlib.util.find_spec(point.module)
        if spec is not None and spec.origin is not None:
            folders[name] = Path(spec.origin).parent
    return folders
