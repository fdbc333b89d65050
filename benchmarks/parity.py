"""Does all of it change what is learnt? Held-out divergence from the teacher, ours against the plain loop.

    python benchmarks/parity.py [--rows N] [--epochs N] [--losses wide|narrow] [--cache CACHE] [--vocabulary keep|trim]
                                [--keep FILE]

Parity of all of it: `--cache fp32 --vocabulary trim --keep FILE`: the plain loop reads as many epochs under the same
terms, beside its teacher, with the whole vocabulary.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from harness import keep, machine
from prepared import AUTO, BATCH, LENGTH, Bench, held_out, prepare, texts, write_rows

import nlp_distill
from nlp_distill.cutting import slices
from nlp_distill.loading import load_model, load_tokenizer
from nlp_distill.loop import Step, adamw, learning_rate
from nlp_distill.losses import logits_kl
from nlp_distill.objective import Objective
from nlp_distill.recipe import Recipe
from nlp_distill.rows import Rows
from nlp_distill.signals import LiveTeacher
from nlp_distill.task import load_task

SEEDS = (0, 1, 2)
RATE = 2e-4


def divergence(teacher: Path, student: Path, texts: list[str]) -> tuple[float, list[int]]:
    """Mean KL(teacher ‖ student) of the labels at temperature 1 over texts, in fp32; the student's answers."""
    models = [load_model(folder, AUTO).eval() for folder in (teacher, student)]
    # Each its own tokenizer: ours has another vocabulary.
    tokenizers = [load_tokenizer(folder, LENGTH) for folder in (teacher, student)]
    total, answers = 0.0, []
    for start in range(0, len(texts), BATCH):
        part = texts[start : start + BATCH]
        with torch.no_grad():
            theirs, ours = (
                model(**tokenizer(part, padding=True, truncation=True, max_length=LENGTH, return_tensors="pt")).logits
                for model, tokenizer in zip(models, tokenizers, strict=True)
            )
        total += float(logits_kl(ours, theirs, torch.ones(len(part), dtype=torch.bool), temperature=1.0, softmax=True))
        answers += ours.argmax(-1).tolist()
    return total / len(texts), answers


def plain(bench: Bench, recipe: Recipe, seed: int, out: Path) -> None:
    """The loop without any of it: random batches padded to their longest, live teacher, fp32, the whole vocabulary."""
    phase, task = recipe.distill.phases[0], load_task("classification")
    rows = slices(task.load_data(recipe.data), recipe.data).train
    tokenizer = load_tokenizer(bench.teacher, LENGTH)
    teacher, student = (load_model(folder, AUTO) for folder in (bench.teacher, bench.student))
    examples = Rows(task.features(rows, tokenizer, LENGTH), rows)
    objective = Objective(phase.losses, task, student.config, teacher.config, {"encoder": [1, 3, 5]})
    live = LiveTeacher(teacher, task, objective.teacher_request, None)
    step, collate = Step(student, objective, None).train(), task.collate(tokenizer, student.config)
    optimizer = adamw(step, phase)
    torch.manual_seed(seed)
    chance, count = np.random.default_rng(seed), len(rows) // BATCH
    orders = [chance.permutation(len(rows))[: count * BATCH].reshape(count, BATCH) for _ in range(phase.epochs)]
    for number, numbers in enumerate(np.concatenate(orders)):
        batch = examples.batch(numbers, 0, collate)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(phase, number, count * phase.epochs)
        loss, _ = step(batch, live.signal(batch), {name: float(n) for name, n in objective.counts(batch).items()})
        loss.backward()
        torch.nn.utils.clip_grad_norm_(step.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    student.save_pretrained(out)
    tokenizer.save_pretrained(out)


def parity(bench: Bench, count: int, epochs: int, losses: str, cache: str, vocabulary: str) -> dict[str, Any]:
    """Divergences of ours and of the plain loop, a seed each, and the ratio of their means.

    `vocabulary`: ours; of few rows `trim` cuts it to their words, and the student is another.
    """
    rows = write_rows(bench, "parity", texts(count + 1))
    found: dict[str, list[float]] = {"ours": [], "plain": []}
    unseen = [row["text"] for row in held_out()]
    for seed in SEEDS:
        settings = {"epochs": epochs, "learning_rate": RATE, "schedule": "linear", "warmup": 0.1, "cache": cache}
        told = {**bench.recipe(rows, losses, **settings), "seed": seed}
        told["student"] = {"layers": 3, "vocabulary": vocabulary}
        recipe = Recipe.model_validate(told)
        out = {name: bench.folder / f"parity-{name}-{seed}" for name in found}
        nlp_distill.run(recipe, out=out["ours"], until="distill")
        plain(bench, recipe, seed, out["plain"])
        for name, values in found.items():
            model = out[name] if name == "plain" else out[name] / "model"
            values.append(divergence(bench.teacher, model, unseen)[0])
        print(f"  seed {seed}: " + ", ".join(f"{name} {values[-1]:.4f}" for name, values in found.items()), flush=True)
    ratio = float(np.mean(found["ours"]) / np.mean(found["plain"]))
    kept = {name: [round(value, 5) for value in values] for name, values in found.items()}
    of = {"rows": count, "epochs": epochs, "losses": losses, "cache": cache, "vocabulary": vocabulary}
    return {"ratio": round(ratio, 3), "divergence": kept, **of}


def main() -> None:
    """Parity at length, kept beside the script or where it is said."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--rows", type=int, default=11_904)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--losses", choices=["wide", "narrow"], default="wide")
    parser.add_argument("--cache", choices=["none", "fp32", "bf16", "int8"], default="none")
    parser.add_argument("--vocabulary", choices=["keep", "trim"], default="keep")
    parser.add_argument("--keep", type=Path, default=Path(__file__).with_suffix(".result.json"))
    asked = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        bench = prepare(Path(temporary))
        about = {**machine(), **bench.facts}
        found = parity(bench, asked.rows, asked.epochs, asked.losses, asked.cache, asked.vocabulary)
    print(json.dumps(found))
    keep(str(asked.keep), found, about)


if __name__ == "__main__":
    main()
