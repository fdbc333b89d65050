"""What to serve: references of the command line → models with names; decided without loading any."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from nlp_distill.errors import ModelNameInvalid, NotLight
from nlp_distill.exports.formats import FORMATS, form_of
from nlp_distill.light.door import light_task, made_for
from nlp_distill.loading import architectures
from nlp_distill.prediction import choose
from nlp_distill.rundir import RunDir

NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,63}", re.ASCII)
TASKS = {
    "ForSequenceClassification": "classification",
    "ForQuestionAnswering": "question_answering",
    "ForConditionalGeneration": "seq2seq",
    "MTModel": "seq2seq",
    "EncoderDecoderModel": "seq2seq",
    "ForMaskedLM": "masked_lm",
}
"""Tasks by the end of an architecture's name, for folders that do not say what they were made for."""


@dataclass(frozen=True)
class Served:
    """A model with its name in paths. `light`: served without torch; `task`: the adapter's name."""

    id: str
    folder: Path
    variant: str
    task: str
    light: bool

    @property
    def runtime(self) -> str:
        """The engine, for people."""
        form = form_of(self.variant)
        return FORMATS[form.format].title if form else "PyTorch"


def catalog(references: Sequence[str], variants: Sequence[str] = ()) -> list[Served]:
    """The models of `[NAME=]MODEL` references, each in all `variants` (none: the recommended one).

    Raises `ModelNameInvalid`, `NotLight`, and what `choose` raises.
    """
    served: list[Served] = []
    for reference in references:
        name, path = _named(reference)
        wanted: Sequence[str | None] = variants or [None]
        for variant in wanted:
            found = choose(path, variant)
            of_several = f"{name}-{found.variant}" if len(variants) > 1 else name
            served.append(_served(of_several, found.folder, found.variant))
    names = [model.id for model in served]
    for name in names:
        if not NAME.fullmatch(name) or names.count(name) > 1:
            reason = "two models have it" if names.count(name) > 1 else "it has other letters than a-z, 0-9, . _ -"
            raise ModelNameInvalid(name=name, reason=reason)
    return served


def _named(reference: str) -> tuple[str, str]:
    """The name and the path of `[NAME=]MODEL`."""
    name, given, path = reference.partition("=")
    if given and "/" not in name:
        return name, path
    place = Path(reference.partition("@")[0] if not Path(reference).exists() else reference).resolve()
    return (place.parent.name if place.name == "model" and RunDir(place.parent).exists() else place.name), reference


def _served(name: str, folder: Path, variant: str) -> Served:
    light = light_task(folder, variant)
    if light is None and find_spec("torch") is None:
        raise NotLight(variant=variant, folder=folder)
    return Served(name, folder, variant, light or made_for(folder)[0] or _by_architecture(folder), light is not None)


def _by_architecture(folder: Path) -> str:
    """Third parties' tasks are asked as their pipelines are: with a text or several."""
    named = architectures(folder)
    return next((task for ending, task in TASKS.items() if named and named[0].endswith(ending)), "other")
