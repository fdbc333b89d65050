"""The goals and what a result says of them. A goal is met by the worse end of the 95 % interval."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from harness import CONTROL

Result = Mapping[str, Any]


@dataclass(frozen=True)
class Goal:
    """`limit` of a ratio in a section: at least, or `at_most`. `arm`: of which arm; `inverse`: theirs to ours."""

    text: str
    section: str
    arm: str
    limit: float
    at_most: bool = False

    def found(self, sections: Result) -> dict[str, Any]:
        """`value`, `ci95`, `clock`, `met`; `met` is None where the section is void or was not measured."""
        section = sections.get(self.section)
        if section is None:
            return {"met": None, "why": "not measured"}
        if "ratio" in section:
            clock = section["clock"]
            ratio = section["ratio"].get(self.arm, {}).get(clock or "cpu")
        else:
            clock, ratio = section.get("clock", ""), section.get(self.arm)
        if ratio is None:
            return {"met": None, "why": "not measured"}
        if self.at_most and "ratio" in section:
            ratio = inverse(ratio)
        if clock is None:
            return {**ratio, "met": None, "why": f"void: A/A beyond ±{CONTROL:.0%}"}
        # One pair has no interval.
        low, high = ratio.get("ci95", [ratio["value"]] * 2)
        worse = high if self.at_most else low
        return {**ratio, "clock": clock, "met": worse <= self.limit if self.at_most else worse >= self.limit}


def inverse(ratio: Result) -> dict[str, Any]:
    """Times of ours to theirs, from speeds of ours to theirs."""
    low, high = ratio["ci95"]
    return {"value": round(1 / ratio["value"], 3), "ci95": [round(1 / high, 3), round(1 / low, 3)]}


GOALS = (
    Goal("samples/s, SST-2, all tokens: naive", "short, all tokens", "naive", 30),
    Goal("samples/s, SST-2, all tokens: tuned", "short, all tokens", "tuned", 5),
    Goal("samples/s, SST-2, [CLS]: naive", "short, [CLS]", "naive", 38),
    Goal("samples/s, SST-2, [CLS]: tuned", "short, [CLS]", "tuned", 6.5),
    Goal("samples/s, rows of 128, all tokens: tuned", "128, all tokens", "tuned", 2),
    Goal("samples/s, rows of 128, [CLS]: tuned", "128, [CLS]", "tuned", 2.5),
    Goal("samples/s: TextBrewer, padded", "frameworks", "TextBrewer, padded", 24),
    Goal("samples/s: TextBrewer, dynamic", "frameworks", "TextBrewer, dynamic", 7),
    Goal("samples/s: torchdistill, padded", "frameworks", "torchdistill, padded", 24),
    Goal("samples/s: torchdistill, dynamic", "frameworks", "torchdistill, dynamic", 7),
    Goal("cached epoch / plain fine-tuning, all tokens", "short, all tokens", "plain", 1.05, at_most=True),
    Goal("cached epoch / plain fine-tuning, [CLS]", "short, [CLS]", "plain", 1.05, at_most=True),
    Goal("whole job: tuned loop + optimum-cli", "job", "tuned", 3.5),
    Goal("second run / first", "job", "second", 0.65, at_most=True),
    Goal("peak training memory / naive, rows of 128", "memory", "ours", 0.25, at_most=True),
    Goal("the same, 256 tokens at a time", "memory", "256 tokens at a time", 0.25, at_most=True),
    Goal("seq2seq samples/s, live: naive", "seq2seq, live", "naive", 2),
    Goal("seq2seq samples/s, cached: naive", "seq2seq, cached", "naive", 5),
)
PARITY = (0.98, 1.02)

FAST, SMALL = "student-onnx-int8", "student-onnx-q4"
PHONE, PHONE_SMALL = "student-executorch-int8", "student-executorch-int4"
EXPORT_GOALS = (
    Goal("latency at 128 tokens: teacher / fast", "128, teacher", FAST, 10),
    Goal("latency at 32 tokens: teacher / fast", "32, teacher", FAST, 11),
    Goal("latency at 128 tokens: optimum-cli / fast", "128, optimum-cli int8", FAST, 1.6),
    Goal("latency at 32 tokens: optimum-cli / fast", "32, optimum-cli int8", FAST, 1.5),
)
MATES = 1e-5
"""How far a logit may move for what else is in the batch."""


def table(sections: Result) -> list[dict[str, Any]]:
    """Every goal with what was found."""
    return [{"goal": goal.text, **_limit(goal), **goal.found(sections)} for goal in GOALS]


def parity_table(found: Result) -> list[dict[str, Any]]:
    """The goal of parity: `benchmarks/parity.py`'s result."""
    met = PARITY[0] <= found["ratio"] <= PARITY[1]
    return [{"goal": "held-out KL / plain loop", "limit": "0.98–1.02", "value": found["ratio"], "met": met}]


def asides(sections: Result) -> list[str]:
    """What has no goal: of each section our tokens a second, and how many times as fast we are as each arm."""
    said = []
    for name, section in sections.items():
        if "speed" in section:
            clock = section["clock"] or "cpu"
            ratios = ", ".join(f"{ratio[clock]['value']:.2f} × {arm}" for arm, ratio in section["ratio"].items())
            rate = section["speed"]["ours"][f"tokens_per_s_{clock}"]
            said.append(f"{name}{'' if section['clock'] else ' (void)'}: {rate:,} tokens/s by {clock}; {ratios}")
    return said


def export_table(found: Result) -> list[dict[str, Any]]:
    """Every goal of the exports: `benchmarks/exports.py`'s result with `lengths`, `file_mb`, `lost`, `moved`."""
    sections = {
        f"{length}, {base}": {"clock": section["clock"], "ratio": ratios}
        for length, section in found["lengths"].items()
        for base, ratios in section["faster_than"].items()
    }
    rows = [{"goal": goal.text, **_limit(goal), **goal.found(sections)} for goal in EXPORT_GOALS]
    plain = [
        ("MB of the file of fast", "file_mb", FAST, 9),
        ("MB of the file of small", "file_mb", SMALL, 6.5),
        ("MB of ExecuTorch's int8 file", "file_mb", PHONE, 10),
        ("the same, words of 4 bits", "file_mb", PHONE_SMALL, 10),
        ("points that fast loses", "lost", FAST, 0.2),
        ("points that small loses", "lost", SMALL, 0.5),
        *((f"logits of {name} that batch mates move", "moved", name, MATES) for name in found["moved"]),
    ]
    for text, kind, name, limit in plain:
        value = found[kind].get(name)
        said = (
            {"met": None, "why": "the run has no such form"}
            if value is None
            else {"value": value, "met": value <= limit}
        )
        rows.append({"goal": text, "limit": f"≤ {limit:g}", **said})
    return rows


def _limit(goal: Goal) -> dict[str, str]:
    return {"limit": f"{'≤' if goal.at_most else '≥'} {goal.limit:g}"}


def lines(rows: list[dict[str, Any]]) -> list[str]:
    """The table for people."""
    said = {True: "met", False: "missed"}
    shown = []
    for row in rows:
        value = f"{row['value']:8.2f}" if "value" in row else " " * 8
        bounds = "{:.2f}–{:.2f}".format(*row["ci95"]) if "ci95" in row else ""
        verdict = said.get(row["met"], row.get("why", ""))
        shown.append(f"{row['goal']:48}{row['limit']:>10}{value}  {bounds:>15}  {row.get('clock', ''):4} {verdict}")
    return shown
