"""The checkpoints of a run as they lie there; `nlp_distill.checkpoint`, which needs torch, reads and writes them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

NAME = re.compile(r"(damaged-)?step-(\d+)")


@dataclass(frozen=True)
class Seen:
    """One checkpoint. `sha256`: what each file's should be. A resume computes them; here nothing is read but names."""

    stage: str
    step: int
    created_at: float
    bytes: int
    state: Literal["complete", "damaged"]
    sha256: dict[str, str]


def checkpoints(run: Path) -> list[Seen]:
    """Those that there are, by stage and step; what is just being written or dropped is left out."""
    return sorted(_seen(run / "checkpoints"), key=lambda found: (found.stage, found.step))


def _seen(root: Path) -> Iterator[Seen]:
    for folder in [*root.glob("*/*step-*"), *root.glob("*/*/*step-*")]:
        name = NAME.fullmatch(folder.name)
        if name is None or folder.is_symlink():
            continue
        try:
            files = {file.name: file.stat() for file in folder.iterdir()}
            made = folder.stat().st_mtime
        except OSError:
            continue  # Newer ones have taken its place.
        sums = _sums(folder / "manifest.json")
        whole = bool(sums) and {*sums, "manifest.json"} == {*files} and name[1] is None
        size = sum(file.st_size for file in files.values())
        stage = str(folder.parent.relative_to(root))
        yield Seen(stage, int(name[2]), made, size, "complete" if whole else "damaged", sums)


def _sums(manifest: Path) -> dict[str, str]:
    try:
        said = json.loads(manifest.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return {str(name): str(value) for name, value in said.items()} if isinstance(said, dict) else {}
