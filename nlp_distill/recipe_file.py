"""Recipes as files: find, read, override, report every error at once, write the resolved form."""

from __future__ import annotations

import difflib
import os
import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError

from nlp_distill import strict_yaml
from nlp_distill.errors import RecipeInvalid, RecipeNotFound, RecipeUnreadable, RunFolderNotFound
from nlp_distill.overrides import apply, canonical, takes_place
from nlp_distill.presets import PRESETS, phases_of
from nlp_distill.recipe import Recipe
from nlp_distill.task import task_folders

MAX_BYTES = 256 * 1024

Path_ = tuple[str | int, ...]


def shipped_recipes() -> dict[str, Path]:
    """Recipes that come with the installed tasks: name → file."""
    found = {}
    for folder in task_folders().values():
        for file in sorted((folder / "recipes").glob("*.yaml")):
            found[file.stem] = file
    return found


def find_recipe(name: str, others: Sequence[str] = ()) -> Path:
    """The file of a recipe: a file, a run folder's `recipe.yaml`, or a shipped name.

    `others`: what the name may have been meant for, too. Raises `RecipeNotFound`.
    """
    path = Path(name)
    # Unlike `Path.is_file`, these answer for any text, however long.
    if os.path.isfile(name):
        return path
    if name and os.path.isdir(name):
        if not (path / "recipe.yaml").is_file():
            raise RunFolderNotFound(folder=name)
        return path / "recipe.yaml"
    shipped = shipped_recipes()
    if name in shipped:
        return shipped[name]
    near = difflib.get_close_matches(name[:100], [*shipped, *others], n=1)
    hint = f" Did you mean '{near[0]}'?" if near else ""
    raise RecipeNotFound(name=name, shipped=", ".join(sorted(shipped)), hint=hint)


def load_recipe(name: str, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe and apply `key.path=value` overrides.

    Raises `RecipeNotFound`, `RecipeUnreadable` or `RecipeInvalid`, which lists every problem.
    """
    path = find_recipe(name)
    return parse_recipe(_bytes(path), str(path), overrides)


def recipe_and_folder(
    recipe: str | Path | Recipe, overrides: Sequence[str], out: str | Path | None
) -> tuple[Recipe, Path]:
    """A recipe, or what `load_recipe` takes for one, and the folder that its run goes to. Raises as `load_recipe`."""
    if isinstance(recipe, Recipe):
        return recipe, Path(out or "runs/run")
    name = str(recipe)
    loaded = load_recipe(name, overrides)
    if out is None:
        out = name if Path(name).is_dir() else Path("runs") / find_recipe(name).stem
    return loaded, Path(out)


def recipe_text(path: Path) -> str:
    """A recipe as it is written. Raises `RecipeUnreadable`."""
    return _decoded(_bytes(path), str(path))


def _bytes(path: Path) -> bytes:
    try:
        with path.open("rb") as stream:
            text = stream.read(MAX_BYTES + 1)
    except OSError as error:
        raise RecipeUnreadable(source=path, reason=error.strerror) from error
    if len(text) > MAX_BYTES:
        raise RecipeUnreadable(source=path, reason=f"larger than {MAX_BYTES // 1024} KiB")
    return text


def _decoded(text: bytes, source: str) -> str:
    try:
        return text.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise RecipeUnreadable(source=source, reason="it is not UTF-8 text") from error


def expand(raw: dict[str, Any]) -> dict[str, Any]:
    """The long form of a recipe as written: short forms become lists of one. Unknown keys stay as they are."""
    expanded = dict(raw)
    for short, long in (("task", "tasks"), ("teacher", "teachers")):
        if short in expanded and long not in expanded:
            given = expanded.pop(short)
            expanded[long] = [] if given is None else [given]
    distill = expanded.get("distill")
    if isinstance(distill, dict) and "phases" not in distill:
        named = distill.get("recipe")
        settings = {key: value for key, value in distill.items() if key != "recipe"}
        known = isinstance(named, str) and named in PRESETS
        expanded["distill"] = {"phases": phases_of(str(named), settings) if known else [settings]}
        if named is not None:
            expanded["distill"]["recipe"] = named
    if isinstance(expanded.get("export"), dict):
        expanded["export"] = [expanded["export"]]
    return expanded


def parse_recipe(text: bytes, source: str, overrides: Sequence[str] = ()) -> Recipe:
    """A recipe from the bytes of a YAML file; `source` is how errors name it."""
    raw, root = _read_yaml(text, source)
    single = [override for override in overrides if not takes_place(raw, override)]
    raw = expand(raw)
    problems = [problem for override in single if (problem := apply(raw, override))]
    recipe = None
    try:
        recipe = Recipe.model_validate(raw)
    except ValidationError as error:
        overridden = {canonical(o.split("=", 1)[0]) for o in overrides if "=" in o}
        entries = error.errors()
        problems += [_problem(entry, root, overridden) for entry in entries if not _other_member(entry, entries)]
    if problems or recipe is None:
        raise RecipeInvalid(source, problems)
    return recipe


def write_recipe(recipe: Recipe) -> str:
    """The resolved recipe as YAML."""
    return yaml.safe_dump(recipe.resolved(), sort_keys=False, allow_unicode=True, width=100)


def _read_yaml(text: bytes, source: str) -> tuple[dict[str, Any], yaml.Node | None]:
    try:
        raw, root = strict_yaml.read(_decoded(text, source))
    except ValueError as error:
        raise RecipeUnreadable(source=source, reason=str(error)) from error
    if not isinstance(raw, dict):
        raise RecipeUnreadable(source=source, reason="it must be a mapping of settings")
    return raw, root


def _other_member(entry: Any, entries: Sequence[Any]) -> bool:
    """Whether an error is about the member of a union (word or structure) that was not meant."""
    is_word = isinstance(entry["input"], str)
    odd = (entry["type"] == "list_type" and is_word) or (
        entry["type"] == "literal_error" and isinstance(entry["input"], dict | list)
    )
    here = _walk(entry["loc"])
    return odd and any(other is not entry and _walk(other["loc"])[: len(here)] == here for other in entries)


def _problem(entry: Any, root: yaml.Node | None, overridden: set[Path_]) -> str:
    """One line: where, what, and the nearest valid name."""
    location = tuple(entry["loc"])
    known = _walk(location)
    unknown = entry["type"] == "extra_forbidden"
    if unknown and known[-1:] != location[-1:]:
        # A key that looks like the name of a union's member.
        known = (*known, location[-1])
    shown = [str(part)[:80] for part in _short(known)]
    line = _line(root, known)
    given_by_override = any(
        known[: len(path)] == path or (unknown and path[: len(known)] == known) for path in overridden
    )
    where = "-o" if given_by_override else f"line {line}" if line else "recipe"
    return f"{where}: {'.'.join(shown) or 'recipe'}: {_message(entry, known)}"


def _message(entry: Any, location: Path_) -> str:
    kind, message = entry["type"], entry["msg"]
    if kind == "extra_forbidden":
        names = _fields_at(location[:-1])
        near = difflib.get_close_matches(str(location[-1]), names, n=1)
        hint = f"did you mean '{near[0]}'?" if near else f"known here: {', '.join(names)}"
        return f"unknown setting; {hint}"
    if kind == "missing":
        return "missing; it must be given"
    if kind == "value_error":
        return str(message).removeprefix("Value error, ")
    if kind in ("union_tag_invalid", "literal_error"):
        expected = [name.strip("' ") for name in _expected(entry)]
        given = entry["ctx"].get("tag", entry["input"])
        near = difflib.get_close_matches(str(given), expected, n=1)
        hint = f"; did you mean '{near[0]}'?" if near else ""
        return f"{given!r} is not one of {', '.join(expected)}{hint}"
    if kind == "union_tag_not_found":
        return "every loss needs a `kind`"
    return f"{message[0].lower()}{message[1:]} (given: {entry['input']!r})"


def _expected(entry: Any) -> list[str]:
    text = entry["ctx"].get("expected_tags") or entry["ctx"].get("expected", "")
    return [part for chunk in str(text).split(" or ") for part in chunk.split(",")]


def _models(annotation: Any) -> list[type[BaseModel]]:
    """Pydantic models inside an annotation."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    if get_origin(annotation) in (Union, types.UnionType, Annotated, list, dict):
        return [model for argument in get_args(annotation) for model in _models(argument)]
    return []


def _steps(location: Path_) -> list[tuple[str | int, list[type[BaseModel]]]]:
    """The parts of an error's location that are keys or indices, with the models that each leads to.

    Pydantic puts names of union members between them; those lead nowhere and are left out, but narrow the models.
    """
    models: list[type[BaseModel]] = [Recipe]
    steps: list[tuple[str | int, list[type[BaseModel]]]] = []
    for number, part in enumerate(location):
        fields = [model.model_fields[part] for model in models if part in model.model_fields]
        if fields:
            models = [found for field in fields for found in _models(field.annotation)]
            steps.append((part, models))
        elif isinstance(part, int):
            steps.append((part, models))
        elif narrowed := [m for m in models if part in (m.__name__, _tag(m))]:
            models = narrowed
            if steps:
                steps[-1] = (steps[-1][0], narrowed)
        elif number == len(location) - 1 and "[" not in part and part not in ("str", "int", "float", "none"):
            steps.append((part, []))
    return steps


def _tag(model: type[BaseModel]) -> str | None:
    field = model.model_fields.get("kind")
    return str(field.default) if field is not None else None


def _walk(location: Path_) -> Path_:
    return tuple(part for part, _ in _steps(location))


def _fields_at(location: Path_) -> list[str]:
    steps = _steps(location)
    models = steps[-1][1] if steps else [Recipe]
    names = sorted({name for model in models for name in model.model_fields})
    if not location:
        names = sorted({*names, "task", "teacher"})
    return names


def _short(location: Path_) -> Path_:
    """The long form's place as a person would write it."""
    if location[:2] in (("tasks", 0), ("teachers", 0)):
        return (str(location[0])[:-1], *location[2:])
    if location[:3] == ("distill", "phases", 0):
        return ("distill", *location[3:])
    return location


def _line(root: yaml.Node | None, location: Path_) -> int | None:
    """Line of the deepest part of a place that the file has, in either form."""
    best = None
    for path in (location, _short(location)):
        node, line, depth = root, None, 0
        for part in path:
            child = _child(node, part)
            if child is None:
                break
            line, node = child
            depth += 1
        if line is not None and (best is None or depth > best[0] - (path is not location)):
            best = (depth + (path is not location), line)
    return best[1] if best else None


def _child(node: yaml.Node | None, part: str | int) -> tuple[int, yaml.Node] | None:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            if key.value == str(part):
                return key.start_mark.line + 1, value
    if isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
        value = node.value[part]
        return value.start_mark.line + 1, value
    return None


def flat(value: Any, prefix: str = "") -> Mapping[str, Any]:
    """Nested plain data as dotted keys, to compare settings by."""
    if isinstance(value, Mapping):
        return {k: v for key, child in value.items() for k, v in flat(child, f"{prefix}{key}.").items()}
    if isinstance(value, list) and any(isinstance(child, Mapping) for child in value):
        return {k: v for i, child in enumerate(value) for k, v in flat(child, f"{prefix}{i}.").items()}
    return {prefix.rstrip("."): value}
