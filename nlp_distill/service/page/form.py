"""A recipe as a form, and back. The fields come from the models, so what a recipe may say the form may say.

An empty field is the default, which it shows. Paths are those of the resolved recipe (`distill.phases.0.epochs`).
"""

from __future__ import annotations

import json
import types
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from nlp_distill.overrides import canonical, read_value

Kind = Literal["text", "number", "choice", "data"]
TAGS = {"losses": "kind", "export": "format"}
"""Lists that a person may make longer: the setting that an entry must have."""
LONGEST = 20_000


@dataclass
class Field:
    """One setting. `value`: as it is written in the form."""

    path: str
    title: str
    help: str
    kind: Kind
    value: str = ""
    default: str = ""
    choices: tuple[str, ...] = ()
    suggestions: tuple[str, ...] = ()
    required: bool = False
    shapes: bool = False
    first: bool = False
    error: str = ""

    @property
    def id(self) -> str:
        """Its name in the page."""
        return "f-" + self.path.replace(".", "-")

    def typed(self) -> Any:
        """The value as the recipe has it."""
        if self.kind == "text" or (self.kind == "choice" and set(self.choices) != {"true", "false"}):
            return self.value
        return read_value(self.value)


@dataclass
class Group:
    """Settings that belong together. `entries`: a list's, of which the last is empty, to add one."""

    path: str
    title: str
    help: str = ""
    items: list[Field | Group] = field(default_factory=list)
    entries: bool = False
    error: str = ""

    @property
    def id(self) -> str:
        """Its name in the page."""
        return "g-" + self.path.replace(".", "-")

    def fields(self) -> Iterator[Field]:
        """All fields inside, in order."""
        for item in self.items:
            yield from item.fields() if isinstance(item, Group) else (item,)

    def groups(self) -> Iterator[Group]:
        """All groups inside, in order, outer ones first."""
        for item in self.items:
            if isinstance(item, Group):
                yield item
                yield from item.groups()

    @property
    def filled(self) -> bool:
        """Whether something inside is set, or wrong."""
        return any(one.value or one.error for one in self.fields() if not one.first)

    @property
    def left(self) -> list[Field | Group]:
        """What is not shown above."""
        return [item for item in self.items if not (isinstance(item, Field) and item.first)]


def form_from(model: type[BaseModel], given: Mapping[str, Any], prefix: str = "", raw: bool = False) -> Group:
    """The form of a model. `given`: settings in the long form; `raw`: as a form sent them, all text."""
    root = Group(prefix.rstrip("."), "")
    for name, info in model.model_fields.items():
        root.items += _settings(f"{prefix}{name}", name, info, given.get(name, PydanticUndefined), raw)
    return root


def _settings(path: str, name: str, info: FieldInfo, given: Any, raw: bool) -> Iterator[Field | Group]:
    parts = [part for part in _parts(info.annotation) if part is not type(None)]
    models = [part for part in parts if isinstance(part, type) and issubclass(part, BaseModel)]
    inner = _models_of_list(parts)
    if inner:
        yield _entries(path, name, info, inner, given, raw)
        return
    if not models:
        yield _field(path, name, info, parts, given, raw)
        return
    if len(models) < len(parts):
        words = None if isinstance(given, dict) else given
        yield _field(path, name, info, [part for part in parts if part not in models], words, raw)
    inside = _dumped(given, info) if not raw and given is PydanticUndefined else given
    group = form_from(models[0], inside if isinstance(inside, Mapping) else {}, f"{path}.", raw)
    group.path, group.title, group.help = path, _title(name), info.description or ""
    yield group


def _dumped(given: Any, info: FieldInfo) -> Any:
    return {} if isinstance(info.default, BaseModel) else given


def _entries(path: str, name: str, info: FieldInfo, models: list[type[BaseModel]], given: Any, raw: bool) -> Group:
    """A list of settings, and room for one more where a person may add some."""
    if given is PydanticUndefined and not raw:
        given = [] if info.default is PydanticUndefined else [entry.model_dump(mode="json") for entry in info.default]
    entries = list(given) if isinstance(given, list) else []
    tag = TAGS.get(name)
    if tag is None and not entries:
        entries = [{}]
    group = Group(path, _title(name), info.description or "", entries=True)
    for number, entry in enumerate([*entries, *([{}] if tag else [])]):
        here = f"{path}.{number}"
        inside = entry if isinstance(entry, Mapping) else {}
        kinds = {_tag(model, tag): model for model in models} if tag else {}
        chosen = str(inside.get(tag, "")) if tag else ""
        if tag and not chosen:
            chosen = "" if raw or not inside else str(models[0].model_fields[tag].default)
        model = kinds.get(chosen, models[0])
        made = form_from(model, inside, f"{here}.", raw)
        made.path, made.title = here, f"{_title(name)} {number + 1}" if tag is None else ""
        if tag:
            choices = tuple(kinds) if len(kinds) > 1 else _words([models[0].model_fields[tag].annotation])
            head = Field(f"{here}.{tag}", _title(tag), "", "choice", chosen, "", choices, shapes=True)
            rest = [item for item in made.items if not (isinstance(item, Field) and item.path == head.path)]
            made.items = [head, *(rest if chosen else [])]
        group.items.append(made)
    return group


def _field(path: str, name: str, info: FieldInfo, parts: list[Any], given: Any, raw: bool) -> Field:
    words = _words(parts)
    plain = {part for part in parts if isinstance(part, type)}
    kind: Kind = "data"
    if parts == [bool]:
        kind, words = "choice", ("false", "true")
    elif words and all(get_origin(part) is Literal for part in parts):
        kind = "choice"
    elif plain and plain <= {int, float}:
        kind = "number"
    elif parts == [str]:
        kind = "text"
    default = "" if info.default in (PydanticUndefined, None) else written(info.default, kind)
    value = "" if given in (PydanticUndefined, None) else str(given) if raw else written(given, kind)
    made = Field(
        path, _title(name), info.description or "", kind, value[:LONGEST], default, required=info.is_required()
    )
    made.value = "" if not raw and value == default else made.value
    made.choices, made.suggestions = (words, ()) if kind == "choice" else ((), words)
    return made


def _parts(annotation: Any) -> list[Any]:
    """The alternatives of a type."""
    if get_origin(annotation) is Annotated:
        return _parts(get_args(annotation)[0])
    if get_origin(annotation) in (Union, types.UnionType):
        return [part for one in get_args(annotation) for part in _parts(one)]
    return [annotation]


def _models_of_list(parts: list[Any]) -> list[type[BaseModel]]:
    inside = [inner for part in parts if get_origin(part) is list for inner in _parts(get_args(part)[0])]
    return [inner for inner in inside if isinstance(inner, type) and issubclass(inner, BaseModel)]


def _words(parts: list[Any]) -> tuple[str, ...]:
    return tuple(str(word) for part in parts if get_origin(part) is Literal for word in get_args(part))


def _tag(model: type[BaseModel], tag: str | None) -> str:
    return str(model.model_fields[tag or ""].default)


def _title(name: str) -> str:
    return name.replace("_", " ")


def written(value: Any, kind: Kind) -> str:
    """A setting as a person would write it."""
    if isinstance(value, bool):
        return str(value).lower()
    return str(value) if kind != "data" or isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def nested(sent: Iterable[tuple[str, str]]) -> dict[str, Any]:
    """What a form sent, as settings in the long form; entries that have no tag any more are left out."""
    found: dict[str, Any] = {}
    for name, value in sent:
        *parents, last = name.split(".")
        here = found
        for part in parents:
            inside = here.get(part)
            if isinstance(inside, str) and inside:
                break  # A word was chosen where settings could be, too.
            if not isinstance(inside, dict):
                inside = here[part] = {}
            here = inside
        else:
            if not isinstance(here.get(last), dict):
                here[last] = value
    return {name: _listed(name, inside) for name, inside in found.items()}


def _listed(name: str, given: Any) -> Any:
    if not isinstance(given, dict):
        return given
    if not given or not all(part.isdecimal() for part in given):
        return {part: _listed(part, inside) for part, inside in given.items()}
    entries = [_listed("", given[part]) for part in sorted(given, key=int)]
    tag = TAGS.get(name)
    return [entry for entry in entries if not tag or (isinstance(entry, dict) and entry.get(tag))]


def recipe_of(root: Group, prefix: str = "") -> dict[str, Any]:
    """The settings that a form says, in the long form; what is empty is left to its default."""
    found: dict[str, Any] = {}
    for one in root.fields():
        if one.value:
            _put(found, one.path.removeprefix(prefix).split("."), one.typed())
    for group in root.groups():
        if group.entries and group.path.rpartition(".")[2] in TAGS:
            _put(found, group.path.removeprefix(prefix).split("."), None)
    return {name: _plain(name, inside) for name, inside in found.items()}


def _put(found: dict[str, Any], parts: list[str], value: Any) -> None:
    here = found
    for part in parts[:-1]:
        here = here.setdefault(part, {})
        if not isinstance(here, dict):
            return
    if value is None:
        here.setdefault(parts[-1], {"": None})
    else:
        here[parts[-1]] = value


def _plain(name: str, given: Any) -> Any:
    if not isinstance(given, dict):
        return given
    if given == {"": None}:
        return []
    if given and all(isinstance(part, str) and part.isdecimal() for part in given):
        return [_plain("", given[part]) for part in sorted(given, key=int)]
    return {part: _plain(part, inside) for part, inside in given.items()}


def short_form(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """The recipe as a person would write it: one task, one teacher, one phase."""
    made: dict[str, Any] = {}
    for name, value in recipe.items():
        if name == "tasks" and value:
            made["task"] = value[0] if isinstance(value, list) else value
        elif name == "teachers" and value:
            made["teacher"] = value[0]
        elif name == "distill" and len(value.get("phases", [{}])) <= 1:
            named = {"recipe": value["recipe"]} if value.get("recipe") else {}
            phase = dict((value.get("phases") or [{}])[0])
            # A named distillation takes the place of the terms, as `-o distill.recipe=` does.
            left = {key: v for key, v in phase.items() if not (named and key in ("losses", "supervise"))}
            made["distill"] = {**named, **left}
        else:
            made[name] = value
    return made


def place_error(root: Group, pointer: str, message: str) -> bool:
    """Show what is wrong at its field, or at the group around it; whether there is one."""
    parts = pointer.strip("/").split("/")
    dotted = ".".join(parts[1:] if parts[0] == "recipe" else parts)
    path = ".".join(map(str, canonical(dotted))) if dotted else ""
    places: dict[str, Field | Group] = {group.path: group for group in root.groups()}
    places |= {one.path: one for one in root.fields()}
    while path:
        if path in places:
            here = places[path]
            here.error = f"{here.error}; {message}" if here.error else message
            return True
        path = path.rpartition(".")[0]
    return False
