"""What each gain is worth: everything on, minus one, on SST-2's lengths and on rows of 128 tokens.

    python benchmarks/ablations.py [--rounds N] [--losses wide|narrow …] [--rows short|long …]

A ratio says how many times as fast everything is as everything minus that gain.
"""

from __future__ import annotations

import argparse
import tempfile
from itertools import product
from pathlib import Path
from typing import Any

from engines import ours
from harness import compared, keep, machine, measured
from prepared import STUDENT, long_texts, prepare, texts, write_rows

ROWS = {"short": 640, "long": 64}
KEPT = {"student": {**STUDENT, "vocabulary": "keep"}}
MINUS: dict[str, dict[str, Any]] = {
    "the cache": {"cache": "none"},
    "bf16": {"top": {"precision": "fp32"}},
    "the trimmed vocabulary": {"top": KEPT},
    "fused AdamW": {"without": "fused AdamW"},
    "kept memory": {"without": "kept memory"},
    "unfilled tensors": {"without": "unfilled tensors"},
    "quick noise": {"without": "quick noise"},
    "embeddings in place": {"without": "embeddings in place"},
}
OF_LENGTH: dict[str, dict[str, dict[str, Any]]] = {
    "short": {"sorting": {"without": "sorting"}, "several lengths a step": {"without": "several lengths a step"}},
    "long": {"attention by heads": {"without": "attention by heads"}},
}
"""What only rows of several lengths, or long ones, gain from."""
ALONE: dict[str, dict[str, Any]] = {"[CLS] alone": {"lean": False}}
"""Only where no term reads other tokens of the last layer."""


def main() -> None:
    """Measure and keep the result."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--losses", nargs="+", choices=["wide", "narrow"], default=["wide", "narrow"])
    parser.add_argument("--rows", nargs="+", choices=list(ROWS), default=list(ROWS))
    asked = parser.parse_args()
    about, result = machine(), {}
    with tempfile.TemporaryDirectory() as temporary:
        bench = prepare(Path(temporary))
        given = {"short": texts(ROWS["short"] + 1), "long": long_texts(ROWS["long"] + 1)}
        written = {length: write_rows(bench, length, given[length]) for length in asked.rows}
        for length, losses in product(asked.rows, asked.losses):
            rows = written[length]
            minus = MINUS | OF_LENGTH[length] | (ALONE if losses == "narrow" else {})
            if bench.precision == "fp32":
                minus = {name: it for name, it in minus.items() if name != "bf16"}
            arms = [ours(bench, rows, losses), ours(bench, rows, losses, name="again")]
            arms += [ours(bench, rows, losses, name=name, **settings) for name, settings in minus.items()]
            found = compared(measured(arms, asked.rounds, 1, lambda line: print(line, flush=True)), "ours", "again")
            result[f"{length} rows, {losses}"] = {**found, "rounds": asked.rounds}
            keep(__file__, result, about)
            for name, ratio in found["ratio"].items():
                shown = ratio[found["clock"] or "cpu"]
                low, high = shown["ci95"]
                print(f"{length} rows, {losses}, minus {name}: {shown['value']:.2f} ({low:.2f}–{high:.2f})", flush=True)


if __name__ == "__main__":
    main()
