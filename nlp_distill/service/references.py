"""What a submitted recipe may name: uploads and jobs by id, samples, packages, the Hub; no place on this machine."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

from nlp_distill.service.home import ID
from nlp_distill.sources import HUB_ID, REVISION

Kind = Literal["data", "model"]
FIX = {
    "data": "upload the file and give its id, or name a sample (`sample:NAME`) or a dataset on the Hub",
    "model": "give a Hub id, `package:NAME/path`, or the id of a job that succeeded",
}


@dataclass(frozen=True)
class Reference:
    """One place of a resolved recipe that names data or a model."""

    keys: tuple[str | int, ...]
    kind: Kind
    value: str

    @property
    def pointer(self) -> str:
        """RFC 6901, inside the body of a request."""
        return "/recipe/" + "/".join(map(str, self.keys))


def references(recipe: dict[str, Any]) -> Iterator[Reference]:
    """All of them; `recipe` is resolved."""
    data = recipe["data"]
    files = data["files"]
    named: list[tuple[tuple[str | int, ...], Kind, Any]] = [(("data", "dataset"), "data", data["dataset"])]
    if isinstance(files, dict):
        named += [(("data", "files", split), "data", value) for split, value in files.items()]
    else:
        named.append((("data", "files"), "data", files))
    named += [(("teachers", n, "model"), "model", teacher["model"]) for n, teacher in enumerate(recipe["teachers"])]
    named.append((("student", "model"), "model", recipe["student"]["model"]))
    for keys, kind, value in named:
        if value is not None:
            yield Reference(keys, kind, str(value))


def refused(reference: Reference, known: Callable[[str], bool]) -> str | None:
    """Why a reference is not taken. `known`: whether an id is a file, or a job that succeeded, that is there."""
    value, kind = reference.value, reference.kind
    wanted = "file" if kind == "data" else "job"
    if ID.fullmatch(value):
        if value.startswith(f"{wanted}_") and known(value):
            return None
        return f"there is no {wanted} {value}{' that succeeded' if wanted == 'job' else ''}"
    repository, at, revision = value.partition("@")
    on_hub = HUB_ID.fullmatch(repository) and (not at or (kind == "model" and REVISION.fullmatch(revision)))
    special = value.startswith("sample:" if kind == "data" else "package:") and ".." not in value
    if special or (on_hub and reference.keys[:2] != ("data", "files")):
        return None
    return f"{value[:80]!r} is no name that is taken here; {FIX[kind]}"


def localised(recipe: dict[str, Any], place: Callable[[str], str]) -> dict[str, Any]:
    """The recipe as this machine reads it; `place`: an id → where it lies."""
    local = copy.deepcopy(recipe)
    for reference in references(recipe):
        if ID.fullmatch(reference.value):
            here: Any = local
            for key in reference.keys[:-1]:
                here = here[key]
            here[reference.keys[-1]] = place(reference.value)
    return local
