"""What each gain is worth: everything on, minus one, on SST-2's lengths.

    python benchmarks/ablations.py [--rounds N] [--losses wide|narrow …]

A ratio says how many times as fast everything is as everything minus that gain.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

from engines import ours
from harness import compared, keep, machine, measured
from prepared import STUDENT, prepare, texts, write_rows

ROWS = 640
KEPT = {"student": {**STUDENT, "vocabulary": "keep"}}
MINUS: dict[str, dict[str, Any]] = {
    "sorting": {"without": "sorting"},
    "the cache": {"cache": "none"},
    "bf16": {"top": {"precision": "fp32"}},
    "the trimmed vocabulary": {"top": KEPT},
    "fused AdamW": {"without": "fused AdamW"},
    "kept memory": {"without": "kept memory"},
    "unfilled tensors": {"without": "unfilled tensors"},
}
ALONE: dict[str, dict[str, Any]] = {"[CLS] alone": {"lean": False}}
"""Only where no term reads other tokens of the last layer."""


def main() -> None:
    """Measure and keep the result."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--losses", nargs="+", choices=["wide", "narrow"], default=["wide", "narrow"])
    asked = parser.parse_args()
    about, result = machine(), {}
    with tempfile.TemporaryDirectory() as temporary:
        bench = prepare(Path(temporary))
        rows = write_rows(bench, "short", texts(ROWS + 1))
        for losses in asked.losses:
            minus = MINUS | (ALONE if losses == "narrow" else {})
            arms = [ours(bench, rows, losses), ours(bench, rows, losses, name="again")]
            arms += [ours(bench, rows, losses, name=name, **settings) for name, settings in minus.items()]
            found = compared(measured(arms, asked.rounds, 1, lambda line: print(line, flush=True)), "ours", "again")
            result[losses] = {**found, "rounds": asked.rounds}
            for name, ratio in found["ratio"].items():
                shown = ratio[found["clock"] or "cpu"]
                print(f"{losses}, minus {name}: {shown['value']:.2f} ({shown['ci95'][0]:.2f}–{shown['ci95'][1]:.2f})")
    keep(__file__, result, about)


if __name__ == "__main__":
    main()
