"""Distillation steps per second: our loop's batches against the two loops that people write.

    python benchmarks/training_speed.py [--blocks N]

Three ways through the same rows, teacher (MiniLM-6) and student (3 layers), terms (logits, hidden, attention):
`padded` pads everything to 128 tokens in fp32, `dynamic` pads each random batch to its longest row in fp32, `ours`
is what a run does (length-sorted steps, the probed precision). Blocks are interleaved in one process; the ratio is
of medians, with a bootstrap interval; `ours` again is the A/A control.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
from common import BATCH, Pair, interval, keep, ratio

from nlp_distill.batches import epoch_steps
from nlp_distill.precision import autocast_dtype

STEPS = 4


def main() -> None:
    """Measure and keep the result."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--blocks", type=int, default=12)
    blocks = parser.parse_args().blocks
    pair = Pair()
    fast = autocast_dtype(str(pair.probed["precision"]))
    ways = {
        "padded": (pair.random_order(), None, 128),
        "dynamic": (pair.random_order(), None, None),
        "ours": (epoch_steps(pair.rows.lengths, BATCH, 0, 0), fast, None),
        "ours again": (epoch_steps(pair.rows.lengths, BATCH, 0, 1), fast, None),
    }
    trainers = {name: pair.trainer(autocast, pad)[0] for name, (_, autocast, pad) in ways.items()}
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for block in range(blocks + 1):
        for name, (order, _, _) in ways.items():
            start = time.perf_counter()
            trainers[name](order[block * STEPS : (block + 1) * STEPS])
            if block:
                rates[name].append(BATCH * STEPS / (time.perf_counter() - start))
    result = {
        "examples_per_s": {name: round(float(np.median(values)), 1) for name, values in rates.items()},
        "ratio_of_ours": {name: interval(ratio, rates["ours"], rates[name]) for name in ways if name != "ours"},
        "precision": pair.probed,
        "blocks": blocks,
    }
    keep(__file__, result)


if __name__ == "__main__":
    main()
