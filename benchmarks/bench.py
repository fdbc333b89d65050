"""The table of goals: training speed, memory and whole jobs, side by side with what people use.

    python benchmarks/bench.py [--rounds N] [--only SECTION …] [--keep FILE]

Sections that are not measured again keep what an earlier run found; so do parity and the goals of exports, which
`benchmarks/parity.py` and `benchmarks/exports.py` measure. How: docs/performance.md.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engines import FRAMEWORKS, framework, naive, ours, products, seq2seq_naive, seq2seq_ours, tuned
from goals import asides, lines, parity_table, table
from harness import Arm, compared, machine, measured
from jobs import job
from prepared import Bench, Rows, long_texts, prepare, prepare_seq2seq, texts, write_rows

FEEDS = ("padded", "dynamic", "sorted", "default")
ROWS, FLAT_ROWS = 640, 64
SMALL = "256 tokens at a time"


@dataclass
class Prepared:
    """The bench and its two sets of rows."""

    bench: Bench
    short: Rows
    flat: Rows

    def pair(self, rows: Rows, losses: str) -> list[Arm]:
        """Ours, and the same again: the A/A control."""
        return [ours(self.bench, rows, losses), ours(self.bench, rows, losses, name="again")]

    def short_arms(self, losses: str) -> list[Arm]:
        """SST-2's lengths: plain fine-tuning of the same student, the two loops, and the products alone.

        Plain fine-tuning runs its last layer for [CLS] alone; beside terms about all tokens once more without.
        """
        plain = ours(self.bench, self.short, "plain", name="plain")
        others = [naive(self.bench, self.short, losses), products(self.bench, self.short, losses)]
        if losses == "wide":
            others.append(ours(self.bench, self.short, "plain", name="plain, whole last layer", lean=False))
        return [*self.pair(self.short, losses), plain, tuned(self.bench, self.short, losses), *others]

    def flat_arms(self, losses: str) -> list[Arm]:
        """Every row has 128 tokens: no padding to save; all-token terms again in micro-batches of two rows."""
        others = [naive(self.bench, self.flat, losses), products(self.bench, self.flat, losses)]
        if losses == "wide":
            others.append(ours(self.bench, self.flat, losses, name=SMALL, micro_batch_tokens=256))
        return [*self.pair(self.flat, losses), tuned(self.bench, self.flat, losses), *others]

    def framework_arms(self) -> list[Arm]:
        """The frameworks with each feed."""
        fed = [framework(self.bench, self.short, name, feed) for name in FRAMEWORKS for feed in FEEDS]
        return [*self.pair(self.short, "wide"), *fed]

    def seq2seq_arms(self, cache: str) -> list[Arm]:
        """A decoder halved under its frozen encoder."""
        rows = prepare_seq2seq(self.bench)
        arms = [seq2seq_ours(self.bench, rows, name, cache) for name in ("ours", "again")]
        return [*arms, seq2seq_naive(self.bench, rows)]


Section = Callable[[Prepared, int], dict[str, Any]]


def speed(arms: Callable[[Prepared], list[Arm]], threads: int = 1) -> Section:
    """A section that compares arms."""

    def section(given: Prepared, rounds: int) -> dict[str, Any]:
        return compared(measured(arms(given), rounds, threads, lambda line: print(line, flush=True)), "ours", "again")

    return section


SECTIONS: dict[str, Section] = {
    "short, all tokens": speed(lambda given: given.short_arms("wide")),
    "short, [CLS]": speed(lambda given: given.short_arms("narrow")),
    "128, all tokens": speed(lambda given: given.flat_arms("wide")),
    "128, [CLS]": speed(lambda given: given.flat_arms("narrow")),
    "frameworks": speed(lambda given: given.framework_arms()),
    "short, all tokens, two threads": speed(lambda given: given.short_arms("wide")[:4], threads=2),
    "seq2seq, live": speed(lambda given: given.seq2seq_arms("none")),
    "seq2seq, cached": speed(lambda given: given.seq2seq_arms("fp32")),
    "job": lambda given, rounds: job(given.bench),
}


def memory(sections: dict[str, Any]) -> dict[str, Any]:
    """Most memory above the imports, to naive, from the section of rows of 128: as it comes, and where it is short."""
    peaks = {name: speed["peak_mb"] for name, speed in sections["128, all tokens"]["speed"].items()}
    shares = {name: {"value": round(peaks[name] / peaks["naive"], 3)} for name in ("ours", SMALL) if name in peaks}
    return {"peak_mb": peaks, **shares}


def main() -> None:
    """Measure the sections asked for, keep them, print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--only", nargs="+", choices=[*SECTIONS], default=[*SECTIONS])
    parser.add_argument("--keep", type=Path, default=Path(__file__).with_suffix(".result.json"))
    asked = parser.parse_args()
    result = json.loads(asked.keep.read_text(encoding="utf-8")) if asked.keep.is_file() else {"sections": {}}
    with tempfile.TemporaryDirectory() as temporary:
        bench = prepare(Path(temporary))
        flat = write_rows(bench, "flat", long_texts(FLAT_ROWS + 1))
        given = Prepared(bench, write_rows(bench, "short", texts(ROWS + 1)), flat)
        for name in asked.only:
            print(name, flush=True)
            start, about = time.monotonic(), machine()
            found = SECTIONS[name](given, asked.rounds)
            result["sections"][name] = {**found, "rounds": asked.rounds, **about, **bench.facts}
            print(f"  {time.monotonic() - start:.0f} s", flush=True)
            if "128, all tokens" in result["sections"]:
                result["sections"]["memory"] = memory(result["sections"])
            result["goals"] = table(result["sections"])
            asked.keep.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(*lines(result["goals"]), "", *asides(result["sections"]), sep="\n")
    for name, rows in (("parity", parity_table), ("exports", lambda found: found.get("goals", []))):
        kept = Path(__file__).with_name(f"{name}.result.json")
        if kept.is_file():
            found = json.loads(kept.read_text(encoding="utf-8"))
            print(f"\n{name}, as `benchmarks/{name}.py` found it last (commit {found['commit']}):")
            print(*lines(rows(found)), sep="\n")


if __name__ == "__main__":
    main()
