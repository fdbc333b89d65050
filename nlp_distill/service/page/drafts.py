"""A job that is being written: where it began, its recipe and its settings as forms, and how else it can be asked."""

from __future__ import annotations

import asyncio
import json
import pprint
import shlex
from dataclasses import dataclass, field
from typing import Any

import yaml
from pydantic import ValidationError

from nlp_distill import strict_yaml
from nlp_distill.recipe import Recipe
from nlp_distill.recipe_file import expand, recipe_text, shipped_recipes
from nlp_distill.service.api import files, recipes
from nlp_distill.service.api.jobs import find
from nlp_distill.service.api.models import JobRequest, Preview, RecipeRequest
from nlp_distill.service.api.service import Service, missing
from nlp_distill.service.page.form import Field, Group, form_from, nested, place_error, recipe_of, short_form
from nlp_distill.service.references import FIX
from nlp_distill.service.store.tokens import Who
from nlp_distill.starter import OFFLINE_TEACHER, starter
from nlp_distill.task import task_names
from nlp_distill.web.problems import Place, Problem

PREFERRED = ("question_answering", "classification", "seq2seq", "masked_lm")
"""Of tasks whose columns a file has, the one that needs the most of them."""
FIRST = {
    "teachers.0.model": "Teacher",
    "student.layers": "Layers of the student",
    "student.encoder_layers": "Encoder layers of the student",
    "student.decoder_layers": "Decoder layers of the student",
    "student.model": "Student",
    "distill.phases.0.epochs": "Epochs",
    "budget.latency_ms": "Latency, at most (ms)",
    "budget.size_mb": "Size, at most (MB)",
    "budget.score_drop": "Points that may be lost",
    "control": "Labels-only control",
}
ONLY_SET = ("student.layers", "student.encoder_layers", "student.decoder_layers", "student.model")
"""Shown first where they are in use: a student is one of several kinds."""
JOB_PREFIX = "job."
ROLE_PREFIX = "column."
MOST_PREVIEWS = 32
_previews: dict[str, Preview] = {}


@dataclass
class Draft:
    """A job as it is being written. `about`: where it began, sent along with the form."""

    recipe: Group
    job: Group
    about: dict[str, str]
    preview: Preview | None = None
    roles: dict[str, str] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)
    guessed: bool = False

    def __post_init__(self) -> None:
        fields = {one.path: one for one in self.recipe.fields()}
        for path, title in FIRST.items():
            if path in fields and (fields[path].value or fields[path].error or path not in ONLY_SET):
                fields[path].first, fields[path].title = True, title
        self.first = [fields[path] for path in FIRST if path in fields and fields[path].first]
        _suggest(fields)

    def field(self, path: str) -> Field:
        """One of the recipe's fields."""
        return next(one for one in self.recipe.fields() if one.path == path)

    @property
    def given(self) -> dict[str, Any]:
        """The recipe as a person would write it."""
        made = recipe_of(self.recipe)
        columns = {role: column for role, column in self.roles.items() if column}
        if self.preview is not None:
            made.setdefault("data", {})["columns"] = columns
        return short_form(made)

    @property
    def request(self) -> dict[str, Any]:
        """The body of `POST /v1/jobs`."""
        said = recipe_of(self.job, JOB_PREFIX)
        if isinstance(said.get("tags"), str):
            said["tags"] = [tag.strip() for tag in said["tags"].split(",") if tag.strip()]
        return {"recipe": self.given, **said}

    def blame(self, places: list[Place], otherwise: str) -> None:
        """Show what is wrong where it is."""
        for place in places:
            if place.pointer.startswith("/recipe"):
                found = place_error(self.recipe, place.pointer, place.message)
            else:
                found = place_error(self.job, f"/{JOB_PREFIX[:-1]}{place.pointer}", place.message)
            if not found:
                self.wrong.append(place.message)
        if not places:
            self.wrong.append(otherwise)
        Draft.__post_init__(self)

    def errors(self) -> dict[str, str]:
        """Id of a field or group → what is wrong there."""
        both: list[Field | Group] = []
        for root in (self.recipe, self.job):
            both += [*root.fields(), *root.groups()]
        return {one.id: one.error for one in both if one.error}

    def elsewhere(self, origin: str) -> dict[str, str]:
        """The same job as YAML, as a shell command and as Python."""
        request = self.request
        body = json.dumps(request, ensure_ascii=False)
        others = "".join(f", {name}={value!r}" for name, value in request.items() if name != "recipe")
        recipe = pprint.pformat(request["recipe"], sort_dicts=False, width=88)
        return {
            "yaml": yaml.safe_dump(self.given, sort_keys=False, allow_unicode=True, default_flow_style=None, width=88),
            "curl": f'curl {origin}/v1/jobs \\\n  -H "Authorization: Bearer $NLP_DISTILL_TOKEN" \\\n'
            f"  -H 'Content-Type: application/json' \\\n  --data {shlex.quote(body)}",
            "python": f"from nlp_distill import Client\n\nrecipe = {recipe}\n"
            f'job = Client("{origin}").jobs.create(recipe{others}).wait()\njob.download("my-student")',
        }


def _suggest(fields: dict[str, Field]) -> None:
    fields["tasks"].suggestions = tuple(task_names())
    # Over HTTP a recipe names no place of this machine.
    for path, kind in (("teachers.0.model", "model"), ("student.model", "model"), ("data.dataset", "data")):
        if path in fields:
            fields[path].help = FIX[kind][:1].upper() + FIX[kind][1:] + "."
            fields[path].suggestions = (OFFLINE_TEACHER,) if kind == "model" else ()


def _recipe_form(given: dict[str, Any], raw: bool = False) -> Group:
    """One task is one word in the form."""
    tasks = given.get("tasks")
    form = form_from(Recipe, given, raw=raw)
    one = next(one for one in form.fields() if one.path == "tasks")
    one.value = str(tasks[0]) if isinstance(tasks, list) and tasks else str(tasks or "")
    one.kind, one.title, one.path = "text", "task", "tasks"
    return form


def _job_form(given: dict[str, Any], raw: bool = False) -> Group:
    form = form_from(JobRequest, given, JOB_PREFIX, raw)
    form.items = [item for item in form.items if item.path != f"{JOB_PREFIX}recipe"]
    return form


def from_template(name: str) -> Draft:
    """A shipped recipe. Raises `Problem`."""
    if name not in shipped_recipes():
        raise missing("template")
    return from_yaml(recipe_text(shipped_recipes()[name]), {"template": name}, name)


def from_yaml(text: str, about: dict[str, str], name: str = "") -> Draft:
    """A recipe as a file has it; it was read once and can be read again."""
    given, _ = strict_yaml.read(text)
    return Draft(_recipe_form(expand(given)), _job_form({"name": name}), about)


def from_job(service: Service, job_id: str) -> Draft:
    """The recipe of a job, to be changed. Raises `Problem`."""
    with service.database.reading() as connection:
        row = find(connection, job_id)
    settings = {"name": row.name, "tags": row.tags, "priority": row.priority, "resources": row.resources}
    return Draft(_recipe_form(row.recipe), _job_form(settings), {"job": job_id})


async def from_file(service: Service, who: Who, file_id: str, task: str = "") -> Draft:
    """A starter for rows of a person's own. Raises `Problem`."""
    row = files.show(file_id, service, who)
    name = row.name.rpartition(".")[0]
    try:
        preview = await _look(service, who, file_id)
    except Problem as problem:
        if problem.status_code not in (429, 503):
            raise
        # A file that takes long to look at can be learnt from all the same.
        draft = from_yaml(starter("", "", task or PREFERRED[1], file_id, {}, OFFLINE_TEACHER), {}, name)
        draft.wrong.append(f"The file was not looked at: {problem.detail} Its columns are guessed when the job starts.")
        return draft
    known = [one for one in (*PREFERRED, *preview.guessed) if one in preview.guessed]
    task = task if task in preview.roles else next(iter(known), "classification")
    columns = preview.guessed.get(task, {})
    text = starter("", "", task, file_id, columns, OFFLINE_TEACHER)
    draft = from_yaml(text, {"file": file_id, "task": task}, name)
    return _with_preview(draft, preview, task, {role: str(column) for role, column in columns.items()})


async def _look(service: Service, who: Who, file_id: str) -> Preview:
    """An upload never changes, so it is looked at once."""
    if file_id not in _previews:
        found = await files.preview(file_id, service, who)
        while len(_previews) >= MOST_PREVIEWS:
            _previews.pop(next(iter(_previews)))
        _previews[file_id] = found
    return _previews[file_id]


def _with_preview(draft: Draft, preview: Preview, task: str, columns: dict[str, str]) -> Draft:
    draft.preview = preview
    draft.roles = {role: columns.get(role, "") for role in preview.roles.get(task, [])}
    guess = {role: str(column) for role, column in preview.guessed.get(task, {}).items()}
    draft.guessed = bool(guess) and {role: column for role, column in draft.roles.items() if column} == guess
    return draft


async def from_form(service: Service, who: Who, sent: dict[str, list[str]]) -> Draft:
    """The form as it was sent."""
    single = [(name, values[0].strip()) for name, values in sent.items()]
    told = {name: value for name, value in single if "." not in name}
    about = {name: told[name] for name in ("template", "file", "task", "job") if told.get(name)}
    settings = nested((name, value) for name, value in single if not name.startswith((JOB_PREFIX, ROLE_PREFIX)))
    job = nested((name.removeprefix(JOB_PREFIX), value) for name, value in single if name.startswith(JOB_PREFIX))
    task = str(settings.get("tasks", ""))
    draft = Draft(_recipe_form(settings, raw=True), _job_form(job, raw=True), about)
    if "file" not in about:
        return draft
    roles = {name.removeprefix(ROLE_PREFIX): value for name, value in single if name.startswith(ROLE_PREFIX)}
    try:
        preview = await _look(service, who, about["file"])
    except Problem as problem:
        # What was chosen stays chosen.
        draft.roles = roles
        draft.wrong.append(f"The file was not looked at: {problem.detail}")
        return draft
    return _with_preview(draft, preview, task, roles)


async def checked(service: Service, who: Who, draft: Draft) -> bool:
    """Whether it may be submitted; what is wrong is shown at its field."""
    try:
        JobRequest.model_validate(draft.request)
    except ValidationError as error:
        places = [Place(pointer="/" + "/".join(map(str, one["loc"])), message=one["msg"]) for one in error.errors()]
        draft.blame([place for place in places if not place.pointer.startswith("/recipe")], "")
    try:
        await asyncio.to_thread(recipes.validate, RecipeRequest(recipe=draft.given), service, who)
    except Problem as problem:
        draft.blame(problem.errors, str(problem.detail))
    return not draft.errors() and not draft.wrong
