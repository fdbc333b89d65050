"""What each gain is worth: everything on, minus one.

    python benchmarks/ablations.py [--rounds N] [--only SECTION …]

A ratio says how many times as fast everything is as everything minus that gain; under `plus`, where a gain is not on
unless it is asked for, how many times as fast everything and that gain is as everything. Sections that are not
measured again keep what an earlier run found.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from engines import ours, seq2seq_ours
from harness import CLOCKS, Arm, Blocks, compared, keep, machine, measured, speed_ratio
from prepared import LENGTH, STUDENT, Bench, Rows, long_texts, many_words, prepare, prepare_seq2seq, texts, write_rows

ROWS = {"short": 640, "long": 64, "longer": 64}
LONGER = 384
"""Tokens of the longer rows; the long ones have 128."""
KEPT = {"student": {**STUDENT, "vocabulary": "keep"}}
MINUS: dict[str, dict[str, Any]] = {
    "the cache": {"cache": "none"},
    "bf16": {"top": {"precision": "fp32"}},
    "the trimmed vocabulary": {"top": KEPT},
    "fused AdamW": {"without": ["fused AdamW"]},
    "kept memory": {"without": ["kept memory"]},
    "unfilled tensors": {"without": ["unfilled tensors"]},
    "quick noise": {"without": ["quick noise"]},
    "embeddings in place": {"without": ["embeddings in place"]},
}
OF_LENGTH: dict[str, dict[str, dict[str, Any]]] = {
    "short": {"sorting": {"without": ["sorting"]}, "several lengths a step": {"without": ["several lengths a step"]}},
    "long": {"attention by heads": {"without": ["attention by heads"]}},
}
"""What only rows of several lengths, or long ones, gain from."""
ALONE: dict[str, dict[str, Any]] = {"[CLS] alone": {"lean": False}}
"""Only where no term reads other tokens of the last layer."""
CUTS: dict[str, dict[str, Any]] = {"cuts by padding": {"without": ["cuts by padding"]}}
BY_WIDTH: dict[str, dict[str, Any]] = {"attention terms by width": {"without": ["attention terms by width"]}}
SCORES: dict[str, dict[str, Any]] = {
    **BY_WIDTH,
    "attention terms by examples": {"without": ["attention terms by examples"]},
}
"""Only where a term reads scores, and a batch has many."""
PLUS: dict[str, dict[str, Any]] = {
    "frozen embeddings": {"freeze": ["embeddings"]},
    "compiled graphs": {"top": {"compile": True}},
}
"""What is not on unless it is asked for: it changes what is learnt, or pays on some machines only."""
MIDDLE = [1, 2, 3]
"""Teacher layers, of six, that the student's three imitate."""


class Prepared:
    """The bench and its rows, made when they are first asked for."""

    def __init__(self, folder: Path) -> None:
        self.bench, self.rows = prepare(folder), dict[str, Rows]()

    def of(self, length: str) -> Rows:
        """Rows of SST-2's lengths, or of 128 or 384 tokens."""
        if length not in self.rows:
            given = (texts if length == "short" else long_texts)(ROWS[length] + 1)
            self.rows[length] = write_rows(self.bench, length, given, LONGER if length == "longer" else LENGTH)
        return self.rows[length]


Arms = Callable[[Prepared], list[Arm]]


def classifier(length: str, losses: str, changed: Mapping[str, Mapping[str, Any]]) -> Arms:
    """Everything, twice, and changed by each gain."""

    def arms(given: Prepared) -> list[Arm]:
        bench, rows = given.bench, given.of(length)
        some = [name for name in changed if name != "bf16" or bench.precision == "bf16"]
        top = {"max_length": LONGER} if length == "longer" else {}
        changes = [("ours", {}), ("again", {}), *((name, changed[name]) for name in some)]
        return [
            ours(bench, rows, losses, name=name, **{**change, "top": {**change.get("top", {}), **top}})
            for name, change in changes
        ]

    return arms


def early_stop(**phase: Any) -> Arms:
    """MiniLM's term, which asks for no logits: the teacher beside the student stops at the layer read, or goes on."""

    def arms(given: Prepared) -> list[Arm]:
        told: tuple[Bench, Rows, str] = given.bench, given.of("short"), "relation"
        live = {"cache": "none", **phase}
        made = [ours(*told, **live), ours(*told, name="again", **live)]
        return [*made, ours(*told, name="early stop", without=["early stop"], **live)]

    return arms


def seq2seq(cache: str, *minus: str, words: bool = False) -> Arms:
    """A decoder halved under its frozen encoder. `words`: as many as T5 has, for a loss that a few fit in whole."""

    def arms(given: Prepared) -> list[Arm]:
        bench, rows = given.bench, prepare_seq2seq(given.bench)
        teacher = many_words(rows) if words else None
        made = [seq2seq_ours(bench, rows, name, cache, teacher=teacher) for name in ("ours", "again")]
        for gain in minus:
            live, out = ("none", []) if gain == "the cache" else (cache, [gain])
            made.append(seq2seq_ours(bench, rows, gain, live, out, teacher))
        return made

    return arms


SECTIONS: dict[str, Arms] = {
    "short rows, wide": classifier("short", "wide", MINUS | OF_LENGTH["short"]),
    "short rows, narrow": classifier("short", "narrow", MINUS | OF_LENGTH["short"] | ALONE),
    "long rows, wide": classifier("long", "wide", MINUS | OF_LENGTH["long"]),
    "long rows, narrow": classifier("long", "narrow", MINUS | OF_LENGTH["long"] | ALONE),
    # Of their own: a dozen processes are what a machine's memory holds.
    "short rows, wide, more": classifier("short", "wide", CUTS | PLUS),
    "short rows, narrow, more": classifier("short", "narrow", CUTS | PLUS),
    "long rows, wide, more": classifier("long", "wide", SCORES | PLUS),
    "long rows, narrow, more": classifier("long", "narrow", PLUS),
    "longer rows, wide": classifier("longer", "wide", BY_WIDTH),
    "early stop, last layer read": early_stop(),
    "early stop, middle layer read": early_stop(supervise=MIDDLE),
    "seq2seq, cached": seq2seq("fp32", "the cache", "shared encoder"),
    "seq2seq, live": seq2seq("none", "shared encoder"),
    "seq2seq, live, 32,128 words": seq2seq("none", "chunked KL", words=True),
}


def worth(blocks: Blocks) -> dict[str, Any]:
    """All ratios; those of `PLUS` the other way round, and under a name of their own."""
    found = compared(blocks, "ours", "again")
    plus = {
        name: {clock: speed_ratio(blocks, name, "ours", clock) for clock in CLOCKS} for name in PLUS if name in blocks
    }
    minus = {name: ratio for name, ratio in found["ratio"].items() if name not in plus}
    return {**found, "ratio": minus, **({"plus": plus} if plus else {})}


def earlier(kept: Path) -> dict[str, Any]:
    """The sections of an earlier run, each with where it was taken."""
    found = json.loads(kept.read_text(encoding="utf-8")) if kept.is_file() else {}
    about = {name: found.pop(name) for name in ("commit", "versions", "machine") if name in found}
    return {section: {**about, **values} for section, values in found.items()}


def main() -> None:
    """Measure the sections asked for and keep them."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--only", nargs="+", choices=[*SECTIONS], default=[*SECTIONS])
    asked = parser.parse_args()
    result = earlier(Path(__file__).with_suffix(".result.json"))
    with tempfile.TemporaryDirectory() as temporary:
        given = Prepared(Path(temporary))
        for section in asked.only:
            arms, about = SECTIONS[section](given), machine()
            found = worth(measured(arms, asked.rounds, 1, lambda line: print(line, flush=True)))
            result[section] = {**found, "rounds": asked.rounds, **about, **given.bench.facts}
            keep(__file__, result, {})
            for sign in ("ratio", "plus"):
                for name, ratio in found.get(sign, {}).items():
                    shown = ratio[found["clock"] or "cpu"]
                    low, high = shown["ci95"]
                    said = f"{'minus' if sign == 'ratio' else 'plus'} {name}"
                    print(f"{section}, {said}: {shown['value']:.2f} ({low:.2f}–{high:.2f})", flush=True)


if __name__ == "__main__":
    main()
