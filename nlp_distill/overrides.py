"""`-o key.path=value`: where a setting stands in the long form of a recipe, and what is put there."""

from __future__ import annotations

from typing import Any

import yaml

from nlp_distill import strict_yaml
from nlp_distill.presets import PRESETS
from nlp_distill.recipe import Phase

Path_ = tuple[str | int, ...]
FIXED = "phases"
"""A list to which no override adds an entry: one phase more would be another distillation."""


def takes_place(raw: dict[str, Any], override: str) -> bool:
    """Whether an override stands for a whole part, which it then takes the place of as it would be written."""
    dotted, given, text = override.partition("=")
    dotted = dotted.strip()
    written = raw.get("distill") or {}
    if given and dotted == "distill.recipe" and isinstance(written, dict):
        # A named distillation takes the place of the terms that are written.
        raw["distill"] = {**_shared(written), "recipe": text}
    elif given and dotted in ("task", "teacher", "distill", "export"):
        raw.pop(f"{dotted}s", None)
        raw[dotted] = read_value(text)
    else:
        return False
    return True


def _shared(distill: dict[str, Any]) -> dict[str, Any]:
    """The settings beside the terms; of phases those that all have, where they are neither the defaults nor came with
    the named distillation that is replaced.
    """
    phases, named = distill.get("phases"), distill.get("recipe")
    if isinstance(phases, list) and phases and all(isinstance(phase, dict) for phase in phases):
        fields = Phase.model_fields
        distill = {
            name: value
            for name, value in phases[0].items()
            if all(phase.get(name) == value for phase in phases) and name in fields and value != fields[name].default
        }
    own = {name: value for phase in PRESETS.get(str(named), []) for name, value in phase.items()}
    return {
        name: value
        for name, value in distill.items()
        if name not in ("losses", "supervise", "phases", "recipe") and (name not in own or value != own[name])
    }


def canonical(dotted: str) -> Path_:
    """Where a key of the short form stands in the long form: `distill.epochs` → distill.phases.0.epochs."""
    parts: list[str | int] = [int(part) if part.isdecimal() else part for part in dotted.strip().split(".")]
    if parts[0] in ("task", "teacher"):
        parts[:1] = [f"{parts[0]}s", 0]
    elif parts[0] == "distill" and len(parts) > 1 and parts[1] not in ("phases", "recipe"):
        parts[1:1] = ["phases", 0]
    return tuple(parts)


def apply(raw: dict[str, Any], override: str) -> str | None:
    """Apply one override in place; a sentence if it cannot be."""
    if "=" not in override:
        return f"-o {override}: write it as key=value, for example -o distill.epochs=3"
    dotted, text = override.split("=", 1)
    value = read_value(text)
    path, distill = canonical(dotted), raw.get("distill")
    phases = distill.get("phases") if isinstance(distill, dict) else None
    # What names no phase holds in every one.
    named = dotted.strip().startswith("distill.phases")
    count = len(phases) if path[:2] == ("distill", "phases") and isinstance(phases, list) and not named else 1
    for number in range(max(1, count)):
        said = _set(raw, (*path[:2], number, *path[3:]) if count > 1 else path, value, override)
        if said is not None:
            return said
    return None


def _set(raw: dict[str, Any], path: Path_, value: Any, override: str) -> str | None:
    *parents, last = path
    here: Any = raw
    for before, part in zip(("", *parents), parents, strict=False):
        if isinstance(here, list) and isinstance(part, int) and part < len(here) + (before != FIXED):
            if part == len(here):
                here.append({})
            here = here[part]
        elif isinstance(here, dict):
            if here.get(part) is None:
                here[part] = _unwritten(part)
            here = here[part]
        else:
            return f"-o {override}: there is nothing at '{part}'"
    if isinstance(here, list) and isinstance(last, int) and last < len(here):
        here[last] = value
    elif isinstance(here, dict):
        here[last] = value
    else:
        return f"-o {override}: there is nothing at '{last}'"
    return None


def _unwritten(part: str | int) -> Any:
    """What a part that is not written has, so that one of its settings may be given."""
    if part == "losses":
        return [term.model_dump(mode="json") for term in Phase().losses]
    return {"phases": [{}], "tasks": [], "teachers": [], "export": []}.get(str(part), {})


def read_value(text: str) -> Any:
    """One setting as a person writes it, outside a file; what is no YAML stays text, and so does what has quotes."""
    try:
        value, root = strict_yaml.read(text)
    except ValueError:
        return _number(text)
    return value if isinstance(root, yaml.ScalarNode) and root.style else _number(value)


def _number(value: Any) -> Any:
    """YAML 1.1 reads `5e-5` as text; a recipe means the number."""
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value
