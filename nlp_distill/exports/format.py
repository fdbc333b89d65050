"""What a file format answers, so that the road can check, make, prove, load and ship it without knowing its name."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from nlp_distill.errors import ExportInvalid, NotExportable

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from nlp_distill.loop import Notify
    from nlp_distill.recipe import Export, Profile
    from nlp_distill.rows import Rows
    from nlp_distill.task import Task


@dataclass(frozen=True)
class Form:
    """What a profile of a format makes. `suffix`: of the files' names; `batch`: rows in a call when it is scored."""

    format: str
    profile: Profile
    variant: str
    precision: str
    suffix: str = ""
    batch: int = 16

    @property
    def exact(self) -> bool:
        """Whether it must give PyTorch's own logits."""
        return self.profile == "exact"


@dataclass(frozen=True)
class Work:
    """What is exported, and the rows that calibrate and judge it: the selection rows, never the reported ones.

    `retrained`: makes a folder of the same student, trained on to be rounded to some bits; None where nothing can be.
    """

    model: Path
    task: Task
    tokenizer: Any
    rows: Rows
    notify: Notify
    retrained: Callable[[int], Path] | None = None


@dataclass(frozen=True)
class Attempt:
    """One way to make the files of a form. `says`: its settings, for the results; `write`: makes them in a folder."""

    says: dict[str, Any]
    write: Callable[[Path], dict[str, Any] | None]


class Format(ABC):
    """A file format; every name that differs between formats is in its class."""

    name: ClassVar[str]
    """In the recipe, `export.format`."""
    title: ClassVar[str]
    """As people write it."""
    folder: ClassVar[str]
    """Of its files, inside the model's folder."""
    runtime: ClassVar[str]
    """The engine, as the results name it."""
    module: ClassVar[str]
    """A module that is there where the engine is installed."""
    loader: ClassVar[str]
    """A module that loads its files: what a process imports once, whatever model it runs."""
    extra: ClassVar[str]
    """Extra of this package that installs it."""
    forms: ClassVar[tuple[Form, ...]]
    """What its profiles make, the smallest files first."""
    source: ClassVar[Profile | None] = None
    """The profile that is made first, whatever is asked: the others are made from its files and judged against it."""

    @property
    def installed(self) -> bool:
        """Whether the engine is there."""
        return find_spec(self.module.partition(".")[0]) is not None and find_spec(self.module) is not None

    def form(self, profile: Profile) -> Form:
        """What a profile makes. Raises `ExportInvalid`."""
        for form in self.forms:
            if form.profile == profile:
                return form
        known = ", ".join(form.profile for form in self.forms)
        raise ExportInvalid(reason=f"{self.name} has no profile '{profile}'; choose one of {known}")

    def wanted(self, asked: list[Export]) -> list[tuple[Form, Export]]:
        """The forms to make for a recipe's entries of this format, the source first."""
        wanted = {self.form(entry.profile): entry for entry in asked}
        if self.source is not None:
            source = self.form(self.source)
            wanted = {source: wanted.pop(source, asked[0]), **wanted}
        return list(wanted.items())

    @abstractmethod
    def check(self, config: PretrainedConfig, task: Task, settings: Export) -> None:
        """Refuse before training what could not be made after. Raises `MissingExtra`, `NotExportable`."""

    @abstractmethod
    def attempts(self, work: Work, form: Form, settings: Export) -> Iterator[Attempt]:
        """Ways to make a form, in the order in which they are tried; the next one only where one lost too much."""

    @abstractmethod
    def files(self, model: Path, form: Form) -> list[Path]:
        """The files of a form in a model's folder, which are shipped together; empty where there are none."""

    @abstractmethod
    def settings(self, model: Path, form: Form) -> dict[str, Any]:
        """What a user must say to load a form with stock classes, for the results."""

    @abstractmethod
    def load(self, model: Path, auto_class: str, form: Form, threads: int | None = None) -> Any:
        """A form as a model: called with named tensors it gives outputs with `logits`, and it has a `config`.

        Raises `MissingExtra`, `ModelNotFound` for files that cannot be read.
        """

    @abstractmethod
    def pipeline(self, model: Any, task: Task, tokenizer: Any) -> Any:
        """The pipeline of a loaded form that a user would call."""

    def refuse(self, config: PretrainedConfig, task: Task, reason: str) -> NotExportable:
        """The error that says why not."""
        return NotExportable(model_type=config.model_type, task=task.pipeline_task, format=self.title, reason=reason)
