"""What exact resume costs: checkpoints and reseeding, as a share of the training time of the quickstart.

    python benchmarks/safety_cost.py [--rounds N]

Interleaved in one process: some steps of the quickstart's distillation, one checkpoint (written, hashed, fsynced,
published, an older one dropped), a thousand reseedings. A run writes a checkpoint every `checkpoint_minutes` (5) and
reseeds once a micro-batch, of which a short step has two.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from common import BATCH, Pair, interval, keep

from nlp_distill.batches import GROUPS, derived_seed, epoch_steps
from nlp_distill.checkpoint import Checkpoint, CheckpointFolder, optimizer_tensors
from nlp_distill.precision import autocast_dtype
from nlp_distill.recipe import Training

STEPS, SEEDS = 8, 1000


def share(steps: np.ndarray, saves: np.ndarray, seeds: np.ndarray) -> float:
    """Percent of training time."""
    reseeding = GROUPS * np.median(seeds) / np.median(steps)
    return float(100 * (np.median(saves) / (60 * Training().checkpoint_minutes) + reseeding))


def main() -> None:
    """Measure and keep the result."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--rounds", type=int, default=12)
    rounds = parser.parse_args().rounds
    pair = Pair()
    run, step, optimizer = pair.trainer(autocast_dtype(str(pair.probed["precision"])))
    order = epoch_steps(pair.rows.lengths, BATCH, 0, 0, groups=1)
    steps, saves, seeds = [], [], []
    with tempfile.TemporaryDirectory(dir=".") as scratch:
        folder = CheckpointFolder(Path(scratch), "k")
        for number in range(rounds + 1):
            start = time.perf_counter()
            run(order[number * STEPS : (number + 1) * STEPS])
            trained = time.perf_counter()
            best = {name: tensor.detach().clone() for name, tensor in step.state_dict().items()}
            tensors = optimizer_tensors(step, optimizer)
            folder.save(Checkpoint({"step": number}, dict(step.state_dict()), tensors, best))
            saved = time.perf_counter()
            for seed in range(SEEDS):
                torch.manual_seed(derived_seed(seed, "noise", number, 0, 0))
            if number:
                steps.append((trained - start) / STEPS)
                saves.append(saved - trained)
                seeds.append((time.perf_counter() - saved) / SEEDS)
    result = {
        "step_ms": round(1000 * float(np.median(steps)), 2),
        "checkpoint_s": round(float(np.median(saves)), 3),
        "reseeding_ms": round(1000 * float(np.median(seeds)), 4),
        "percent_of_training": interval(share, steps, saves, seeds, digits=3),
        "rounds": rounds,
    }
    keep(__file__, result)


if __name__ == "__main__":
    main()
