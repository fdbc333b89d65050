"""`report.html` and `report.md`: one file each, of the same numbers.

The page is a single file without scripts: it asks no network for anything, and says so to the browser. What comes
from data (texts, labels, names) is escaped; it is never part of the page's own words.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from nlp_distill.cutting import slices
from nlp_distill.errors import DataError, HubUnreachable, ResultsMissing, RunFolderDamaged, RunFolderNotFound
from nlp_distill.loading import load_tokenizer
from nlp_distill.recipe_file import load_recipe
from nlp_distill.reports.card import write_card
from nlp_distill.reports.document import document
from nlp_distill.rundir import RunDir, read_json, write_text
from nlp_distill.task import Task, load_task

if TYPE_CHECKING:
    from pathlib import Path

    from datasets import Dataset

FILES = ("report.html", "report.md")
SPECIAL = re.compile(r"([\\`*_{}\[\]#|~$])")


def report_stage(road: Any) -> tuple[list[str], dict[str, Any]]:
    """The last stage of the road: both files. `road`: a `nlp_distill.road.Road`."""
    if road.main:
        publish(road.rundir, road.task, road.slices.evaluation)
    return list(FILES) if road.main else [], {}


def publish(run: RunDir, task: Task, rows: Dataset | None) -> list[Path]:
    """Write both files into the folder of a finished run. Raises `RunFolderDamaged`."""
    try:
        content = document(run, task, rows)
    except KeyError as error:
        raise RunFolderDamaged(file=run.results, reason=f"it has no {error}") from error
    made = []
    for name, text in zip(FILES, (html(content), markdown(content)), strict=True):
        write_text(run.path / name, text)
        made.append(run.path / name)
    return made


def report(path: str | Path) -> list[Path]:
    """Write the report of a finished run anew, from what its folder and its data say; nothing is trained.

    Where the rows are no longer there, or are others by now, what is told of single rows is left out.
    Raises `RunFolderNotFound`, `ResultsMissing`, `RunFolderDamaged`.
    """
    run = RunDir(path)
    if not run.exists():
        raise RunFolderNotFound(folder=path)
    if not run.results.is_file():
        raise ResultsMissing(folder=path)
    recipe = load_recipe(str(path), [])
    task = load_task(recipe.task, recipe.options)
    try:
        found = slices(task.load_data(recipe.data), recipe.data, task)
    except (DataError, HubUnreachable):
        return publish(run, task, None)
    results = read_json(run.results)
    if not (run.model / "README.md").is_file() and (run.model / "config.json").is_file():
        write_card(run, results, task, load_tokenizer(run.model))
    same = found.sha256["evaluation"] == results["data"]["sha256"]["evaluation"]
    return publish(run, task, found.evaluation if same else None)


def html(content: dict[str, Any]) -> str:
    """The page."""
    return _environment("html").get_template("report.html").render(content)


def markdown(content: dict[str, Any]) -> str:
    """The same numbers for a model card."""
    return _environment("md").get_template("report.md").render(content)


@lru_cache
def _environment(form: str) -> Environment:
    """Every value that a template shows is escaped, whatever the template says."""
    page = form == "html"
    return Environment(
        loader=PackageLoader("nlp_distill.reports"),
        undefined=StrictUndefined,
        autoescape=page,
        finalize=None if page else plain_markdown,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )


def plain_markdown(value: Any) -> str:
    """A value as Markdown shows it: no tags, no links, no table of its own, one line."""
    text = " ".join(str(value).split())
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    # An address becomes a link by itself wherever it has a colon and two slashes, or begins with www.
    text = SPECIAL.sub(r"\\\1", text).replace("://", ":&#47;&#47;")
    return re.sub(r"(?i)\bwww\.", "www&#46;", text)
