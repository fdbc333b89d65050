"""What a run will take, before it takes it: parameters, memory, disk, steps, time; from configs, not from weights.

Sizes follow from configs; time from the arithmetic of a step and a probe of this machine's matrix products. Memory
and time are estimates: right within a factor of two, which is enough to know whether to start.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import PretrainedConfig

from nlp_distill.cutting import slices
from nlp_distill.errors import DiskFull
from nlp_distill.families import family_of
from nlp_distill.loading import load_tokenizer, shape_of
from nlp_distill.preflight import Feasible, check
from nlp_distill.recipe import Finetune, Recipe, Training
from nlp_distill.recipe_file import load_recipe
from nlp_distill.rows import ACTIVATION, LEAST_TOKENS
from nlp_distill.starts import first_source
from nlp_distill.task import Task, load_task
from nlp_distill.teacher import candidates
from nlp_distill.vocabulary import trimmed

WEIGHT, TRAINED, CHECKPOINT = 4, 20, 16
"""Bytes a parameter: kept; in training (weight, gradient, two moments, best copy); in a checkpoint."""
LIBRARIES = 0.7e9
"""Bytes of a process that has loaded them."""
EFFICIENCY = 0.5
"""Share of the probed rate that training reaches."""
BANDWIDTH = 8e9
"""Bytes a second that the optimizer's pass over the parameters moves."""
GENERATING = 4
"""Times as long as reading that writing tokens one after another takes: 3.5 to 3.7 of 32 at once on a CPU."""
OPTIMIZER = 28
"""Bytes a parameter and step that AdamW moves."""
SAMPLE = 512
"""Rows tokenised to know how long they are."""


@dataclass(frozen=True)
class Part:
    """A model: parameters in all, those that every token passes, layers, width."""

    parameters: int
    per_token: int
    layers: int
    width: int

    @classmethod
    def of(cls, config: PretrainedConfig, auto_class: str) -> Part:
        """From a config alone."""
        parameters, embedded, head = shape_of(config, auto_class)
        stacks = family_of(config).stacks
        layers = sum(stack.count(config) for stack in stacks)
        return cls(parameters, parameters - embedded + head, layers, stacks[0].width(config))


@dataclass(frozen=True)
class Estimate:
    """Bytes, seconds and counts."""

    teacher: Part | None
    student: Part
    steps: int
    tokens: float
    memory: float
    disk: float
    free: float
    seconds: float

    def lines(self) -> list[str]:
        """For people."""
        short = f"; only {self.free / 1e9:.1f} GB are free" if self.disk > self.free else ""
        return [
            *([f"  teacher: {self.teacher.parameters / 1e6:.1f} M parameters"] if self.teacher else []),
            f"  student: {self.student.parameters / 1e6:.1f} M parameters",
            f"  steps: {self.steps:,}, examples of {self.tokens:.0f} tokens on average",
            f"  memory: about {self.memory / 1e9:.1f} GB",
            f"  disk: about {self.disk / 1e9:.2f} GB{short}",
            f"  training: about {_time(self.seconds)} on {torch.get_num_threads()} thread(s) here",
        ]


def estimate(name: str, overrides: Sequence[str] = (), out: Path = Path()) -> Estimate:
    """Of a recipe on its data. Raises what a run would raise before it trains."""
    recipe = load_recipe(name, overrides)
    task = load_task(recipe.task, recipe.options)
    rows = slices(task.load_data(recipe.data), recipe.data, task)
    source = first_source(recipe, task, rows.train, rows.sha256)
    found = check(recipe, task, source, len(rows.train))
    tokenizer = load_tokenizer(source.folder, recipe.max_length)
    trims = recipe.student.vocabulary == "trim"
    sample = rows.train if trims else rows.train.select(range(min(SAMPLE, len(rows.train))))
    features = task.features(sample, tokenizer, tokenizer.model_max_length)
    lengths = features["length"][:] if "length" in features.column_names else [len(i) for i in features["input_ids"]]
    examples = len(rows.train) * len(lengths) / len(sample)
    tokens = sum(lengths) / len(lengths)
    if trims:
        found.student.vocab_size = len(trimmed(tokenizer, features).kept)
    teacher, student = _parts(task, found)
    tunings = _tunings(recipe, len(rows.train)) if found.tries else []
    # What the probe of a run would take is the faster.
    asked = {"fp32": [False], "auto": [False, True]}.get(recipe.precision, [True])
    rate = max(_rate(bf16) for bf16 in asked)
    seconds, steps = 0.0, 0
    for tuning in tunings:
        assert teacher is not None
        seconds += _seconds(tuning, teacher, None, examples, tokens, rate)
        steps += _steps(tuning, examples)
    for phase in recipe.distill.phases:
        beside = teacher if any(term.kind != "labels" for term in phase.losses) else None
        seconds += _seconds(phase, student, beside, examples, tokens, rate)
        steps += _steps(phase, examples)
        if phase.targets == "teacher" and teacher is not None:
            seconds += 2 * teacher.per_token * examples * tokens * GENERATING / (rate * EFFICIENCY)
        if recipe.control:
            seconds += _seconds(phase, student, None, examples, tokens, rate)
            steps += _steps(phase, examples)
    disk = _disk(recipe, teacher, student, tries=len(tunings))
    memory = _memory(recipe, teacher, student, tokens, tunings)
    return Estimate(teacher, student, steps, tokens, memory, disk, _free(out), seconds)


def check_disk(folder: Path, recipe: Recipe, task: Task, found: Feasible, done: Collection[str]) -> None:
    """Refuse a run that will not fit beside what its folder holds already. Raises `DiskFull`.

    `done`: stages whose checkpoints have been and gone.
    """
    trained = {"distill", "control"} <= {*done}
    need = _disk(recipe, *_parts(task, found), tries=0 if "teacher" in done else found.tries, trained=trained)
    try:
        need -= sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
        free = _free(folder)
    except OSError:
        return  # No place for a run at all: entering it says why.
    if need > free:
        reason = f"the run needs about {need / 1e9:.2f} GB, {free / 1e9:.2f} GB are free"
        raise DiskFull(path=folder, reason=reason)


def _parts(task: Task, found: Feasible) -> tuple[Part | None, Part]:
    """Teacher and student."""
    teacher = Part.of(found.teacher, task.auto_class) if found.teacher is not None else None
    return teacher, Part.of(found.student, task.auto_class)


def _free(folder: Path) -> float:
    """Bytes that can be written where the folder is, or will be."""
    there = next(place for place in (folder.resolve(), *folder.resolve().parents) if place.is_dir())
    return float(shutil.disk_usage(there).free)


def _tunings(recipe: Recipe, rows: int) -> list[Finetune]:
    assert recipe.teacher is not None
    wanted = recipe.teacher.finetune
    return [wanted] if isinstance(wanted, Finetune) else candidates(rows)


def _steps(training: Training, examples: float) -> int:
    return max(1, int(examples // training.batch_size)) * training.epochs


def _seconds(
    training: Training, model: Part, beside: Part | None, examples: float, tokens: float, rate: float
) -> float:
    """Forward and backward of a model (2 + 4 operations a parameter and token), forward of the one beside it: at every
    epoch, or once where its signals are cached.
    """
    passes = training.epochs if getattr(training, "cache", "none") == "none" else 1
    work = 6 * model.per_token * training.epochs + (2 * beside.per_token * passes if beside else 0)
    computing = examples * tokens * work / (rate * EFFICIENCY)
    return computing + _steps(training, examples) * OPTIMIZER * model.parameters / BANDWIDTH


def _memory(recipe: Recipe, teacher: Part | None, student: Part, tokens: float, tunings: Sequence[Training]) -> float:
    """The larger of the teacher's training and the student's beside its teacher."""
    needs = []
    for trainings, trained, beside in (
        (tunings, teacher, None),
        (recipe.distill.phases, student, teacher),
    ):
        for training in trainings:
            assert trained is not None
            batch = min(training.micro_batch_tokens or LEAST_TOKENS, training.batch_size * tokens)
            kept = TRAINED * trained.parameters + (WEIGHT * beside.parameters if beside else 0)
            needs.append(kept + batch * ACTIVATION * trained.layers * trained.width)
    return LIBRARIES + max(needs)


def _disk(recipe: Recipe, teacher: Part | None, student: Part, tries: int, trained: bool = False) -> float:
    """Models, exports, and what the stage that needs most goes through: two checkpoints a phase, or a try."""
    models = (1 + 1 + recipe.control) * student.parameters + (teacher.parameters if teacher else 0)
    exports = sum(student.parameters * (5 if export.profile == "fast" else 4) for export in recipe.export)
    phases = 2 * CHECKPOINT * len(recipe.distill.phases) * student.parameters
    tuning = (2 * CHECKPOINT + WEIGHT * (tries > 1)) * tries * (teacher.parameters if teacher else 0)
    return WEIGHT * models + exports + max(0 if trained else phases, tuning)


def _rate(bf16: bool) -> float:
    """Operations a second of a matrix product of a small transformer's shape."""
    dtype = torch.bfloat16 if bf16 else torch.float32
    left, right = torch.randn(512, 384).to(dtype), torch.randn(384, 1536).to(dtype)
    done, start = 0, time.perf_counter()
    while done < 3 or time.perf_counter() - start < 0.3:
        left @ right
        done += 1
    return 2 * 512 * 384 * 1536 * done / (time.perf_counter() - start)


def _time(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
